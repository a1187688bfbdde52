/* SPDX-License-Identifier: MIT */
/**
 * DOC: linear recurrences whose decays are vectors backward, on mma.sync: products of a chunk
 *
 * Chunks of TILE positions, a block for each. With D the scores' gradients, D_tu = <do_t, v_u>,
 * made symmetric, one product of each level gives what queries get from keys, in their rows,
 * and what keys get from queries. A warp has 16 rows and a quarter of the columns.
 */
#ifndef TENON_CUDA_LINATTN_MMA_VECTOR_BWD_CUH
#define TENON_CUDA_LINATTN_MMA_VECTOR_BWD_CUH

#include "linattn_mma_vector.cuh"

enum {
	BWD_THREADS = 512,
	BWD_WARPS = BWD_THREADS / 32,
	GROUP = 3,		/* levels whose operands stand in shared memory at a time, of 6 */
	TILE_RUNS = TILE / RUN,
	VALUES = 64,		/* columns of values of a state that stand there */
};

/*
 * k: keys; when scores are there these with decays to the chunk's end. state: a slice of the
 * state before the chunk, and of the gradient of the one behind it; other: the same of every
 * second slice. x: queries and keys of levels. d: D times the scale; a: scores. log: sums of logarithms to base 2
 * from the chunk's beginning on, behind a row of 0. own: q dq - k dk; keys: sums of k dk from
 * states over 16 rows each; both: parts of <state, gradient>; rest: sums of own.
 */
template <class S> struct bwd_smem {
	static constexpr int PARTS = BWD_WARPS / (S::K / 16), SEGS = BWD_THREADS / S::K;
	bf16 q[TILE * S::K], k[TILE * S::K], v[TILE * S::V], d_o[TILE * S::V];
	bf16 state[2][S::K * VALUES];
	union {
		bf16 x[GROUP][TILE * S::K], other[2][S::K * VALUES];
		float run[TILE_RUNS][S::K], own[TILE][S::LOGS];
	};
	union {
		bf16 d[TILE * TILE];
		struct {
			float keys[TILE / 16][S::K], both[PARTS][S::K], rest[SEGS][S::K];
		};
	};
	bf16 a[TILE * TILE];
	float log[1 + TILE][S::LOGS];
	struct mma_head head;
};

/*
 * A warp's rows, first column of keys and first of a slice of values; pair: the element of a tile
 * of keys where its lane's first accumulators belong.
 */
template <class S> struct part {
	static constexpr int K = S::K / 4, N = K / 8;
	int row, key, value, pair;
};

template <class S> static __device__ __forceinline__ struct part<S> part_of(void)
{
	int warp = threadIdx.x / 32, row = warp % 4 * 16, key = warp / 4 * part<S>::K;

	return { row, key, warp / 4 * (VALUES / 4),
		 tile_at<S::K>(row + threadIdx.x % 32 / 4, key / 8) + (int)threadIdx.x % 4 * 2 };
}

/* Of accumulators c[n][r] and the next, the elements of a tile of keys. */
template <class S>
static __device__ __forceinline__ float2 pair_of(const bf16 *x, const struct part<S> &w, int n, int r)
{
	return pair_get(x + chunk_at(w.pair, n) + r * 4 * S::K);
}

/* Accumulators of rows of keys: gradients of queries and keys, and q dq - k dk. */
template <class S> struct grads {
	float dq[part<S>::N][4], dk[part<S>::N][4], own[part<S>::N][4];
};

/* The runs of two columns that a thread has: f(run, the first column). */
template <class S, class F> static __device__ __forceinline__ void each_tile_run(F f)
{
	mma_each<TILE_RUNS * S::K / 2, BWD_THREADS>([&](unsigned int j) {
		f(j / (S::K / 2), j % (S::K / 2) * 2);
	});
}

template <class S>
static __device__ __forceinline__ float2 &log_of(bwd_smem<S> &m, int row, int c)
{
	return *(float2 *)&m.log[row][c];
}

template <class S>
static __device__ __forceinline__ float2 log_of(const bwd_smem<S> &m, int row, int c)
{
	return *(const float2 *)&m.log[row][c];
}

/* Decays between rows @i and @j of logarithms, whichever comes first. */
template <class S>
static __device__ __forceinline__ float2 decay_between(const bwd_smem<S> &m, int i, int j, int c)
{
	float2 x = log_of<S>(m, i, c), y = log_of<S>(m, j, c);

	return { exp2_fast(-fabsf(x.x - y.x)), exp2_fast(-fabsf(x.y - y.y)) };
}

/* Where at level @l the half ends, in rows of logarithms, that position @t decays from or to. */
static __device__ __forceinline__ int border(int l, int t)
{
	return (t >> l | 1) << l;
}

/* Sums of runs, of logarithms as they came. */
template <class S> static __device__ __forceinline__ void run_sums(bwd_smem<S> &m)
{
	each_tile_run<S>([&](int run, int c) {
		float2 all = { 0, 0 };

#pragma unroll
		for (int r = 0; r < RUN; r++)
			all += log_of<S>(m, 1 + run * RUN + r, c) * LOG2E;
		*(float2 *)&m.run[run][c] = all;
	});
}

/* Sums from the chunk's beginning on, in their places, when those are there. */
template <class S> static __device__ __forceinline__ void log_sums(bwd_smem<S> &m)
{
	each_tile_run<S>([&](int run, int c) {
		float2 sum = { 0, 0 };

#pragma unroll
		for (int j = 0; j < TILE_RUNS - 1; j++)
			if (j < run)
				sum += *(const float2 *)&m.run[j][c];
		if (!run)
			log_of<S>(m, 0, c) = sum;
#pragma unroll
		for (int r = 0; r < RUN; r++) {
			sum += log_of<S>(m, 1 + run * RUN + r, c) * LOG2E;
			log_of<S>(m, 1 + run * RUN + r, c) = sum;
		}
	});
}

/* Decays in a run of two columns: of each position, and of those behind it. */
template <class S>
static __device__ __forceinline__ struct run_decays tile_decays_of(const bwd_smem<S> &m, int run,
								   int c)
{
	struct run_decays x;

#pragma unroll
	for (int r = 0; r < RUN; r++)
		x.alpha[r] = decay_between<S>(m, run * RUN + r, run * RUN + r + 1, c);
	run_decays_to(x);
	return x;
}

/* Operands of levels 0 to 2. */
template <class S> static __device__ __forceinline__ void operands_near(bwd_smem<S> &m)
{
	each_tile_run<S>([&](int run, int c) {
		struct run_decays d = tile_decays_of<S>(m, run, c);
		int first = tile_at<S::K>(run * RUN, c / 8) + c % 8;
		float2 from = { 1, 1 };

#pragma unroll
		for (int r = 0; r < RUN; r++) {
			int at = chunk_at(first, r) + r * S::K;
			float2 q = pair_get(m.q + at), k = pair_get(m.k + at);

			from *= d.alpha[r];
			levels_inside(m, at, r, q, k, d.alpha);
			pair_put(m.x[2] + at, run & 1 ? q * from : k * d.to[r]);
		}
	});
}

/* Operands of levels 3 to 5, and keys with decays to the chunk's end in their places. */
template <class S> static __device__ __forceinline__ void operands_far(bwd_smem<S> &m)
{
	each_tile_run<S>([&](int run, int c) {
		struct run_decays d = tile_decays_of<S>(m, run, c);
		int first = tile_at<S::K>(run * RUN, c / 8) + c % 8, t = run * RUN;
		float2 from = { 1, 1 }, level[GROUP], end = decay_between<S>(m, t + RUN, TILE, c);

#pragma unroll
		for (int l = 0; l < GROUP; l++)
			level[l] = decay_between<S>(m, t >> (l + 3) & 1 ? t : t + RUN, border(l + 3, t),
						    c);
#pragma unroll
		for (int r = 0; r < RUN; r++) {
			int at = chunk_at(first, r) + r * S::K;
			float2 q = pair_get(m.q + at), k = pair_get(m.k + at) * d.to[r];

			from *= d.alpha[r];
			q *= from;
#pragma unroll
			for (int l = 0; l < GROUP; l++)
				pair_put(m.x[l] + at, (t >> (l + 3) & 1 ? q : k) * level[l]);
			pair_put(m.k + at, k * end);
		}
	});
}

/* Scores of level @l, 16 rows by 16 columns; those above the diagonal become 0. */
template <class S>
static __device__ __forceinline__ void score_tile(bwd_smem<S> &m, int l, int row, int col,
						  float scale)
{
	const bf16 *q = l < 0 ? m.q : m.x[l % GROUP], *k = l < 0 ? m.k : m.x[l % GROUP];
	float c[2][4] = {};

#pragma unroll
	for (int n = 0; n < S::K / 16; n++) {
		uint32_t a[4];

		mma_left<S::K>(a, q, row, n);
		mma_nt<S::K, 2>(c, a, k, col, n);
	}
	mma_pairs<2>(row, col, [&](int n, int r, int t, int u) {
#pragma unroll
		for (int i = 0; i < 2; i++) {
			bool above = l < 0 && u + i > t;

			if (above || of_level(l, t, u + i))
				m.a[tile_at<TILE>(t, u / 8) + u % 8 + i] =
					__float2bfloat16(above ? 0 : scale * c[n][r + i]);
		}
	});
}

/* Of levels -1 to 2, or with @FAR of 3 to 5: a tile for each warp. */
template <class S, bool FAR>
static __device__ __forceinline__ void score_tiles(bwd_smem<S> &m, float scale)
{
	int warp = threadIdx.x / 32, n = warp % 4;

	if (!FAR)
		score_tile<S>(m, warp / 4 - 1, 16 * n, 16 * n, scale);
	else if (warp < 4)
		score_tile<S>(m, 3, 16 * n, 16 * n, scale);
	else if (warp < 8)
		score_tile<S>(m, 5, 32 + 16 * (n / 2), 16 * (n % 2), scale);
	else if (warp < 10)
		score_tile<S>(m, 4, 32 * n + 16, 32 * n, scale);
}

/* D, a tile for each warp that has one. */
template <class S>
static __device__ __forceinline__ void score_grads(bwd_smem<S> &m, float scale)
{
	int warp = threadIdx.x / 32, row = warp % 4 * 16, col = warp / 4 * 16;
	float c[2][2][4] = {};	/* two sums, for neither waits for the other */

	if (col > row)
		return;
#pragma unroll 4
	for (int n = 0; n < S::V / 16; n++) {
		uint32_t a[4];

		mma_left<S::V>(a, m.d_o, row, n);
		mma_nt<S::V, 2>(c[n % 2], a, m.v, col, n);
	}
	mma_pairs<2>(row, col, [&](int n, int r, int t, int u) {
#pragma unroll
		for (int i = 0; i < 2; i++, u++) {
			bf16 d = __float2bfloat16(scale * (c[0][n][r + i] + c[1][n][r + i]));

			if (u > t)
				continue;
			m.d[tile_at<TILE>(t, u / 8) + u % 8] = d;
			m.d[tile_at<TILE>(u, t / 8) + t % 8] = d;
		}
	});
}

/* Elements of a left operand on the diagonal that belong to level @l alone, of the lower four. */
static __device__ __forceinline__ void mask_level(uint32_t (&a)[4], int l)
{
	unsigned int x = threadIdx.x % 32 / 4 ^ threadIdx.x % 4 * 2;	/* of positions' lower bits */
	uint32_t mask = (x >> l == 1 ? 0xFFFF : 0) | ((x ^ 1) >> l == 1 ? 0xFFFF0000 : 0);

	if (l == 3) {
		a[0] = a[3] = 0;
		return;
	}
	a[1] = a[2] = 0;
	a[0] &= mask;
	a[3] &= mask;
}

/* What a position's query and key have from each other. It is the same in q dq and k dk. */
template <class S>
static __device__ __forceinline__ void add_diagonal(struct grads<S> &g, const bwd_smem<S> &m,
						    const struct part<S> &w)
{
	mma_pairs<part<S>::N>(w.row, w.key, [&](int n, int r, int t, int c) {
		float d = __bfloat162float(m.d[tile_at<TILE>(t, t / 8) + t % 8]);
		float2 q = pair_of<S>(m.q, w, n, r), k = pair_of<S>(m.k, w, n, r);

		*(float2 *)&g.dq[n][r] = k * d;
		*(float2 *)&g.dk[n][r] = q * d;
		*(float2 *)&g.own[n][r] = { 0, 0 };
	});
}

/* D times the operands of level @L, rows that have nothing in common apart */
template <class S, int L>
static __device__ __forceinline__ void level_product(float (&y)[part<S>::N][4],
						     const bwd_smem<S> &m, const struct part<S> &w)
{
	int block = w.row / 16;

#pragma unroll
	for (int j = 0; j < (L < 5 ? 1 : 2); j++) {
		int k = L < 4 ? block : L == 4 ? block ^ 1 : (block & 2 ^ 2) + j;
		uint32_t a[4];

		mma_left<TILE>(a, m.d, w.row, k);
		if (L < 4)
			mask_level(a, L);
		mma_nn<S::K, part<S>::N>(y, a, m.x[L % GROUP], k, w.key);
	}
}

/* c += a b */
static __device__ __forceinline__ void add_pair(float *c, float2 a, const float *b)
{
	c[0] = fmaf(a.x, b[0], c[0]);
	c[1] = fmaf(a.y, b[1], c[1]);
}

/*
 * What level @L gives. x is as it was rounded: then queries and keys have the same from each
 * other in q dq and k dk.
 */
template <class S, int L>
static __device__ __forceinline__ void add_level(struct grads<S> &g, const bwd_smem<S> &m,
						 const struct part<S> &w)
{
	float y[part<S>::N][4] = {};

	level_product<S, L>(y, m, w);
	mma_pairs<part<S>::N>(w.row, w.key, [&](int n, int r, int t, int c) {
		bool query = L == 3 ? r != 0 : (L > 3 ? w.row : t) >> L & 1;
		float2 x = pair_of<S>(m.x[L % GROUP], w, n, r);
		float2 f = decay_between<S>(m, 1 + t, border(L, t), c);

		if (query) {
			add_pair(g.dq[n] + r, f, y[n] + r);
			add_pair(g.own[n] + r, x, y[n] + r);
		} else {
			add_pair(g.dk[n] + r, f, y[n] + r);
			add_pair(g.own[n] + r, { -x.x, -x.y }, y[n] + r);
		}
	});
}

/* c[16][part] += x's rows times s^T, x's columns from 16 @k on */
template <class S>
static __device__ __forceinline__ void from_state(float (&c)[part<S>::N][4], const bf16 *x,
						  const bf16 *s, const struct part<S> &w, int k)
{
#pragma unroll
	for (int n = 0; n < VALUES / 16; n++) {
		uint32_t a[4];

		mma_left<S::V>(a, x, w.row, k + n);
		mma_nt<VALUES, part<S>::N>(c, a, s, w.key, n);
	}
}

/* Gradients of a slice of a chunk's values, @ds the gradient of the state behind it. */
template <class S>
static __device__ __forceinline__ void values(float (&dv)[VALUES / 32][4], const bwd_smem<S> &m,
					      const bf16 *ds, const struct part<S> &w, int e0)
{
	uint32_t a[4];

#pragma unroll
	for (int k = 0; k < S::K / 16; k++) {
		mma_left<S::K>(a, m.k, w.row, k);
		mma_nn<VALUES, VALUES / 32>(dv, a, ds, k, w.value);
	}
#pragma unroll
	for (int k = 0; k < TILE / 16; k++) {
		if (16 * k < w.row)
			continue;
		mma_left_t<TILE>(a, m.a, w.row, k);
		mma_nn<S::V, VALUES / 32>(dv, a, m.d_o, k, e0 + w.value);
	}
}

/*
 * c += s ds^T of 16 rows, of which the diagonal is wanted: the two squares on it, the other two
 * being left out. Warps share the columns.
 */
template <class S>
static __device__ __forceinline__ void add_both(float (&c)[4], const bf16 *s, const bf16 *ds)
{
	constexpr int STEPS = VALUES / 16 / bwd_smem<S>::PARTS;
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = warp % (S::K / 16) * 16;
	uint32_t at = address<VALUES>(ds, row + lane % 8 + lane / 16 * 8, lane / 8 % 2);

#pragma unroll
	for (int j = 0; j < STEPS; j++) {
		int n = warp / (S::K / 16) * STEPS + j;
		uint32_t a[4], b[4];

		mma_left<VALUES>(a, s, row, n);
		matrix_get(b, address_at(at, 2 * n));
		mma(c, { a[0], 0, a[2], 0 }, b[0], b[1]);
		mma(c, { 0, a[1], 0, a[3] }, b[2], b[3]);
	}
}

/* That diagonal, to m.both. */
template <class S>
static __device__ __forceinline__ void both_put(bwd_smem<S> &m, const float (&c)[4])
{
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4;
	float *to = m.both[warp / (S::K / 16)] + warp % (S::K / 16) * 16;

	if (r / 2 != lane % 4)
		return;
	to[r] = r % 2 ? c[1] : c[0];
	to[r + 8] = r % 2 ? c[3] : c[2];
}

#endif
