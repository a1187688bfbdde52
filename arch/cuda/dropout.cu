// SPDX-License-Identifier: MIT
/*
 * Dropout: a random word for each element by its place, so that backward draws the same.
 */
#include "each.cuh"
#include "kernels.h"
#include "philox.h"

enum { WORDS = 4 };	/* of a counter */

/* philox_words() of philox.h, on the device */
static __device__ __forceinline__ void draw_words(uint32_t (&c)[WORDS], uint64_t seed,
						  uint64_t index, uint64_t stream)
{
	uint32_t k0 = seed, k1 = seed >> 32;

	c[0] = index, c[1] = index >> 32, c[2] = stream, c[3] = stream >> 32;
#pragma unroll
	for (int r = 0; r < 10; r++, k0 += PHILOX_W0, k1 += PHILOX_W1) {
		uint32_t x0 = c[0], x2 = c[2];

		c[0] = __umulhi(PHILOX_M1, x2) ^ c[1] ^ k0;
		c[1] = PHILOX_M1 * x2;
		c[2] = __umulhi(PHILOX_M0, x0) ^ c[3] ^ k1;
		c[3] = PHILOX_M0 * x0;
	}
}

struct dropout {
	real *y;
	const real *x;
	const struct draw *draw;
	uint64_t stream, per_micro;	/* counters of a micro-batch */
	uint32_t least;
	float scale;

	template <int W> __device__ void at(size_t i) const
	{
		uint64_t first = draw->micro * per_micro + i / WORDS;
		uint32_t words[WORDS];
		float x[W];

		row_load<W>(x, this->x + i);
#pragma unroll
		for (int e = 0; e < W; e++) {
			if (e % WORDS == 0)
				draw_words(words, draw->seed, first + e / WORDS, stream);
			x[e] = words[W == 1 ? i % WORDS : e % WORDS] >= least ?
				x[e] * scale : 0;
		}
		row_store<W>(y + i, x);
	}
};

void k_dropout(act_t *y, const act_t *x, size_t n, size_t most, double p, uint64_t stream,
	       const struct draw *d)
{
	const struct dropout f = { real_of(y), real_of(x), d, stream, (most + WORDS - 1) / WORDS,
				   (uint32_t)(p * 0x1p32), (float)(1 / (1 - p)) };

	each(f, n, row_wide(y, 0) && row_wide(x, 0));
}
