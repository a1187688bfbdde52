// SPDX-License-Identifier: MIT
/*
 * Dropout: a random word for each element by its place, so that backward draws the same. Words
 * of many counters are made at a time, for vectors.
 */
#include "kernels.h"
#include "philox.h"
#include "real.h"
#include "util.h"

enum {
	WORDS = 4,		/* of a counter */
	COUNTERS = 128,		/* made at a time */
	SPLIT_MIN = 16384,	/* elements below which threads cost more than they gain */
};

/* Of COUNTERS counters from @index on. Not "omp simd", which would keep c[] in memory. */
static void make_words(uint32_t *words, uint64_t seed, uint64_t index, uint64_t stream)
{
	for (int i = 0; i < COUNTERS; i++) {
		uint32_t c[WORDS] = { (uint32_t)(index + i), (uint32_t)((index + i) >> 32),
				      (uint32_t)stream, (uint32_t)(stream >> 32) };

		philox_words((uint32_t)seed, (uint32_t)(seed >> 32), c);
		words[WORDS * i] = c[0];
		words[WORDS * i + 1] = c[1];
		words[WORDS * i + 2] = c[2];
		words[WORDS * i + 3] = c[3];
	}
}

static void drop(act_t *y, const act_t *x, int n, acc_t scale, uint32_t least,
		 const uint32_t *words)
{
#pragma omp simd
	for (int e = 0; e < n; e++)
		y[e] = store(words[e] >= least ? load(x[e]) * scale : 0);
}

void k_dropout(act_t *y, const act_t *x, size_t n, size_t most, double p, uint64_t stream,
	       const struct draw *d)
{
	uint64_t first = d->micro * ((most + WORDS - 1) / WORDS);
	uint32_t least = p * 0x1p32;
	acc_t scale = 1 / (1 - p);

#pragma omp parallel for schedule(static) if (n >= SPLIT_MIN)
	for (size_t e = 0; e < n; e += WORDS * COUNTERS) {
		uint32_t words[WORDS * COUNTERS];

		make_words(words, d->seed, first + e / WORDS, stream);
		drop(y + e, x + e, MIN(n - e, (size_t)WORDS * COUNTERS), scale, least, words);
	}
}
