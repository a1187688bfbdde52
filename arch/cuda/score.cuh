/* SPDX-License-Identifier: MIT */
/**
 * DOC: attention rows, recomputed
 *
 * Tiles of log2 P from q, k and the log-sum-exp of a forward: a block of
 * TILE_THREADS makes the TILE queries t0.. against the TILE keys u0.. of several heads,
 * one after the other, while the operands of the next product are on their way; groups of
 * so many threads, told apart by threadIdx.y, may share a block and its heads. Each
 * element is one chain of sums and explicit multiply-adds: whoever recomputes it gets
 * the same bits, whatever it is then used for.
 */
#ifndef TENON_CUDA_SCORE_CUH
#define TENON_CUDA_SCORE_CUH

#include "attn.cuh"
#include "tile.cuh"

enum { SCORE_W = 128 / sizeof(real) };	/* columns of a head that are multiplied at a time */

/* Operands of two products: the running one and the next. */
struct score_smem {
	real x[2][TILE * SCORE_W], y[2][TILE * SCORE_W];
};

/**
 * struct score_run - struct attn with what only the device needs
 * @scale: of scores, times log2(e)
 * @ra: of the reciprocal term, times log2(e)
 * @vec: every row begins at a multiple of 16 bytes
 */
struct score_run {
	struct attn a;
	float scale, ra;
	bool vec;
};

static inline struct score_run score_run_of(const struct attn *a)
{
	struct score_run r;

	r.a = *a;
	r.scale = a->scale * LOG2E;
	r.ra = a->ra_scale * LOG2E;
	r.vec = (uintptr_t)a->q % 16 == 0 && a->q_row % 8 == 0 && a->q_head % 8 == 0 &&
		(uintptr_t)a->k % 16 == 0 && a->k_row % 8 == 0 && a->k_head % 8 == 0 &&
		a->dk % 8 == 0;
	return r;
}

/* Step @n of a tile: of head h0 + n / steps, first <q_t, k_u>, in the band then <k_t, q_u>. */
static __device__ __forceinline__ void
score_load(struct score_smem &mem, const struct score_run &r, int i, int h0, int steps, int n,
	   int t0, int u0)
{
	const struct attn &a = r.a;
	int h = h0 + n / steps, chunks = div_up(a.dk, SCORE_W), e0 = n % steps % chunks * SCORE_W;
	bool turned = n % steps >= chunks;
	struct head_view q = { real_of(a.q) + attn_q(a, i, h), a.q_row };
	struct head_view k = { real_of(a.k) + attn_k(a, i, h), a.k_row };

	tile_load<SCORE_W>(mem.x[n % 2], turned ? k : q, t0, a.t, e0, a.dk, r.vec);
	tile_load<SCORE_W>(mem.y[n % 2], turned ? q : k, u0, a.t, e0, a.dk, r.vec);
	copy_commit();
}

static __device__ __forceinline__ void score_zero(tile_acc &c)
{
#pragma unroll
	for (int n = 0; n < TILE / 8; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			c[n][i] = 0;
}

/* Of the TILE_THREADS that work on a tile: threads with one threadIdx.y. */
static __device__ __forceinline__ void score_sync(void)
{
	static_assert(TILE_THREADS == 128, "the number in the instruction");
	asm volatile("bar.sync %0, 128;" :: "r"(threadIdx.y + 1) : "memory");
}

/**
 * each_score_tile() - f(h, s) for heads [h0, h1), s = log2 P
 * @BAND: r.ra may be other than 0; else there are registers for more threads
 *
 * Entries u > t hold anything, rows from a.t on log2 of nothing in particular but finite.
 * Ends with a barrier of the group behind the last use of @mem.
 */
template <bool BAND = true, class F>
static __device__ __forceinline__ void
each_score_tile(struct score_smem &mem, const struct score_run &r, int i, int h0, int h1, int t0,
		int u0, F f)
{
	const struct attn &a = r.a;
	bool band = BAND && r.ra != 0 && t0 - (u0 + TILE - 1) <= a.ra_window;
	int chunks = div_up(a.dk, SCORE_W), steps = band ? 2 * chunks : chunks;
	int all = (h1 - h0) * steps;
	tile_acc s, e;

	score_zero(s);
	score_zero(e);
	score_load(mem, r, i, h0, steps, 0, t0, u0);
	for (int n = 0; n < all; n++) {
		int h = h0 + n / steps;

		if (n + 1 < all) {
			score_load(mem, r, i, h0, steps, n + 1, t0, u0);
			copy_wait<1>();
		} else {
			copy_wait<0>();
		}
		score_sync();
		if (!BAND || n % steps < chunks)
			mul_nt<SCORE_W>(s, mem.x[n % 2], mem.y[n % 2]);
		else
			mul_nt<SCORE_W>(e, mem.x[n % 2], mem.y[n % 2]);
		score_sync();
		if (n % steps != steps - 1)
			continue;
#pragma unroll
		for (int half = 0; half < 2; half++) {
			int t = t0 + acc_row(2 * half);
			float lse = t < a.t ? a.lse[attn_stat(a, i, t, h)] * LOG2E : 0;

#pragma unroll
			for (int c = 0; c < TILE / 8; c++) {
#pragma unroll
				for (int k = 2 * half; k < 2 * half + 2; k++) {
					bool in = band && t - u0 - acc_col(c, k) <= a.ra_window;

					s[c][k] = __fmaf_rn(s[c][k], r.scale, -lse);
					if (in)
						s[c][k] = __fmaf_rn(e[c][k], r.ra, s[c][k]);
				}
			}
		}
		f(h, s);
		score_zero(s);
		score_zero(e);
	}
}

#endif
