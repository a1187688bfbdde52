// SPDX-License-Identifier: MIT
/*
 * Byte tokens in memory.
 */
#include <inttypes.h>

#include "bytes.h"
#include "util.h"

void bytes_split_tail(struct bytes *b, const uint8_t *p, uint64_t n)
{
	b->n[SPLIT_VAL] = n / 10;
	b->n[SPLIT_TRAIN] = n - n / 10;
	b->p[SPLIT_TRAIN] = p;
	b->p[SPLIT_VAL] = p + b->n[SPLIT_TRAIN];
}

void bytes_ready(struct bytes *b, const char *origin, const char *rule)
{
	struct sha256 sha;
	char hex[65];

	if (CONFIG_VOCAB_SIZE < 256)
		die("%s: bytes need VOCAB_SIZE 256 or more, it is %d", origin, CONFIG_VOCAB_SIZE);
	sha256_init(&sha);
	sha256_update(&sha, b->p[SPLIT_TRAIN], b->n[SPLIT_TRAIN]);
	sha256_update(&sha, b->p[SPLIT_VAL], b->n[SPLIT_VAL]);
	sha256_final(&sha, hex);
	b->line = xasprintf("%s: %" PRIu64 " bytes, train %" PRIu64 ", validation %" PRIu64
			    " (%s), sha256 %s", origin, b->n[SPLIT_TRAIN] + b->n[SPLIT_VAL],
			    b->n[SPLIT_TRAIN], b->n[SPLIT_VAL], rule, hex);
}

void bytes_read(const struct bytes *b, enum split s, uint64_t pos, int n, int32_t *dst)
{
	if (pos > b->n[s] || (uint64_t)n > b->n[s] - pos)
		die_bug("tokens %" PRIu64 " + %d of %" PRIu64, pos, n, b->n[s]);
	for (int i = 0; i < n; i++)
		dst[i] = b->p[s][pos + i];
}
