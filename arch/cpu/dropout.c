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

/* Elements of one range of counters. */
static void drop(act_t *y, const act_t *x, size_t n, acc_t scale, uint64_t least, uint64_t seed,
		 uint64_t index, uint64_t stream)
{
	uint32_t words[WORDS][COUNTERS];

#pragma omp simd
	for (int i = 0; i < COUNTERS; i++) {
		uint32_t c[WORDS] = { (uint32_t)(index + i), (uint32_t)((index + i) >> 32),
				      (uint32_t)stream, (uint32_t)(stream >> 32) };

		philox_words((uint32_t)seed, (uint32_t)(seed >> 32), c);
		words[0][i] = c[0];
		words[1][i] = c[1];
		words[2][i] = c[2];
		words[3][i] = c[3];
	}
	for (size_t e = 0; e < n; e++)
		y[e] = store(words[e % WORDS][e / WORDS] >= least ? load(x[e]) * scale : 0);
}

void k_dropout(act_t *y, const act_t *x, size_t n, size_t most, double p, uint64_t stream,
	       const struct draw *d)
{
	uint64_t first = d->micro * ((most + WORDS - 1) / WORDS), least = p * 0x1p32;
	acc_t scale = 1 / (1 - p);

#pragma omp parallel for schedule(static) if (n >= SPLIT_MIN)
	for (size_t e = 0; e < n; e += WORDS * COUNTERS)
		drop(y + e, x + e, MIN(n - e, (size_t)WORDS * COUNTERS), scale, least, d->seed,
		     first + e / WORDS, stream);
}
