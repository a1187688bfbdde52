/* SPDX-License-Identifier: MIT */
/**
 * DOC: linear recurrences whose decays are vectors backward, on mma.sync: products of a chunk
 *
 * With D the scores' gradients, D_tu = <do_t, v_u>, made symmetric, one product of each level
 * gives what its queries get from its keys, in their rows, and what keys get from queries.
 */
#ifndef TENON_CUDA_LINATTN_MMA_VECTOR_BWD_CUH
#define TENON_CUDA_LINATTN_MMA_VECTOR_BWD_CUH

#include "linattn_mma_vector.cuh"

/*
 * d: D, pitch SCORES; log: sums of logarithms to base 2 from the chunk's beginning on, behind a
 * row of 0; own: q dq - k dk, when no one reads the state any more.
 */
template <class S> struct vector_smem {
	union {
		bf16 s[S::K * S::V];
		float own[CHUNK][S::LOGS];
	};
	vector_tiles<S> tiles;
	vector_in<S> in;
	bf16 d_o[CHUNK * S::V], d[CHUNK * SCORES];
	float log[1 + CHUNK][S::LOGS];
	struct mma_head head;
};

enum sweep { QUERIES, KEYS, ADD };	/* gradients of these; or what segments add to the state's */

/* A warp's rows and columns: of gradients of queries and keys, of values, of the state. */
template <class S> struct part {
	static constexpr int K = MAX(S::K / (S::WARPS / (CHUNK / 16)), 16);
	int row, key, value, s_row, s_col;
};

template <class S> static __device__ __forceinline__ struct part<S> part_of(void)
{
	int warp = threadIdx.x / 32, n = warp / (CHUNK / 16);

	return { warp % (CHUNK / 16) * 16, n * part<S>::K, n * S::OUT_V, warp % (S::K / 16) * 16,
		 warp / (S::K / 16) * S::STATE_V };
}

/* A chunk of which parts are copied as soon as no one reads what was in their places. */
enum part_of_chunk { Q = 1, K = 2, V = 4, DECAYS = 8, GRADS = 16 };

/* What each sweep needs, and what of that is free when scores and D are there. */
template <enum sweep MODE> struct needs {
	static constexpr int ALL = MODE == ADD ? Q | DECAYS | GRADS : Q | K | V | DECAYS | GRADS;
	static constexpr int EARLY = MODE == QUERIES ? GRADS : MODE == KEYS ? V : 0;
	static constexpr int LATE = ALL & ~EARLY & ~DECAYS;
};

/* Parts @WHICH of the chunk at @t. @AHEAD: to the second cache, where all find them faster. */
template <class S, int WHICH, bool AHEAD>
static __device__ __forceinline__ void load_parts(vector_smem<S> &m, const struct mma_run &p,
						  const struct place &x, int t)
{
	const struct mma_head &head = m.head;
	const struct linattn &a = p.a;

	if (WHICH & Q)
		mma_fetch<S::K, CHUNK, S::THREADS, AHEAD>(m.in.q, head.q, a.q_row, t, x.t1, a.dk);
	if (WHICH & K)
		mma_fetch<S::K, CHUNK, S::THREADS, AHEAD>(m.in.k, head.k, a.k_row, t, x.t1, a.dk);
	if (WHICH & V)
		mma_fetch<S::V, CHUNK, S::THREADS, AHEAD>(m.in.v, head.v, a.v_row, t, x.t1, a.dv);
	if (WHICH & GRADS)
		mma_fetch<S::V, CHUNK, S::THREADS, AHEAD>(m.d_o, head.d_o, a.heads * a.dv, t, x.t1,
							  a.dv);
	if (WHICH & DECAYS)
		load_decays<S>(m.in, head, a, x, t);
}

/* Decay between a position and the border of its half at level @l; LEVELS: of the chunk. */
template <class S, bool QUERY>
static __device__ __forceinline__ float2 decay_at(const vector_smem<S> &m, int l, int t, int c)
{
	int border = QUERY ? t >> l << l : ((t >> l) + 1) << l;
	float2 at = *(const float2 *)&m.log[1 + t][c], to = *(const float2 *)&m.log[border][c];

	if (QUERY)
		return { exp2_fast(at.x - to.x), exp2_fast(at.y - to.y) };
	return { exp2_fast(to.x - at.x), exp2_fast(to.y - at.y) };
}

/* D, a tile for each of three warps. */
template <class S> static __device__ __forceinline__ void score_grads(vector_smem<S> &m)
{
	int lane = threadIdx.x % 32, tile = S::WARPS - 1 - (int)threadIdx.x / 32;
	int row = tile ? 16 : 0, col = tile == 2 ? 16 : 0;
	float c[2][2][4] = {};	/* two sums, for neither waits for the other */

	if (tile > 2)
		return;
#pragma unroll 4
	for (int n = 0; n < S::V / 16; n++) {
		uint32_t a[4];

		mma_left<S::V>(a, m.d_o, row, n);
		mma_nt<S::V, 2>(c[n % 2], a, m.in.v, col, n);
	}
#pragma unroll
	for (int n = 0; n < 2; n++)
#pragma unroll
		for (int i = 0; i < 4; i++) {
			int t = row + lane / 4 + i / 2 * 8, u = col + 8 * n + lane % 4 * 2 + i % 2;
			bf16 d = __float2bfloat16(c[0][n][i] + c[1][n][i]);

			if (u > t)
				continue;
			m.d[tile_at<SCORES>(t, u / 8) + u % 8] = d;
			m.d[tile_at<SCORES>(u, t / 8) + t % 8] = d;
		}
}

/*
 * Elements of a left operand that belong to level @l alone: of a tile on the diagonal, or of
 * one beside it, all of which belongs to the last level.
 */
static __device__ __forceinline__ void mask_level(uint32_t (&a)[4], int l)
{
	unsigned int x = threadIdx.x % 32 / 4 ^ threadIdx.x % 4 * 2;	/* of positions' lower bits */
	unsigned int lo = l < 0 ? x == 0 : x >> l == 1, hi = l < 0 ? x == 1 : (x ^ 1) >> l == 1;
	uint32_t mask = (lo ? 0xFFFF : 0) | (hi ? 0xFFFF0000 : 0);

	if (l == LEVELS - 1)
		return;
	if (l == 3) {
		a[0] = a[3] = 0;
		return;
	}
	a[1] = a[2] = 0;
	a[0] &= mask;
	a[3] &= mask;
}

/* Is row r of a thread's accumulators a query at level @l, in tiles from @row on? */
static __device__ __forceinline__ bool is_query(int l, int row, int r)
{
	return l == LEVELS - 1 ? row != 0 : l == 3 ? r != 0 : threadIdx.x % 32 / 4 >> l & 1;
}

/*
 * What level @l gives: to dx of queries, or with @BACK of keys, by @scale, and to own: x dx, x
 * as it was rounded, for then queries and keys have the same from each other.
 */
template <class S, bool BACK>
static __device__ __forceinline__ void add_level(float (&dx)[part<S>::K / 8][4],
						 float (&own)[part<S>::K / 8][4],
						 const vector_smem<S> &m, const struct part<S> &w,
						 int l, float scale)
{
	const bf16 *other = BACK ? m.in.q : m.in.k, *self = BACK ? m.in.k : m.in.q;
	int k = l == LEVELS - 1 ? !w.row : w.row / 16, c = w.key + threadIdx.x % 4 * 2;
	float y[part<S>::K / 8][4] = {};
	uint32_t a[4];

	if (l == LEVELS - 1 && (w.row != 0) == BACK)
		return;
	if (l >= 0)
		other = self = m.tiles.x[MAX(l, 0)];
	mma_left<SCORES>(a, m.d, w.row, k);
	mask_level(a, l);
	mma_nn<S::K, part<S>::K / 8>(y, a, other, k, w.key);
	mma_rows_scale<part<S>::K / 8>(y, scale, scale);
#pragma unroll
	for (int r = 0; r < 4; r += 2) {
		int t = w.row + threadIdx.x % 32 / 4 + r * 4;
		bool ours = l < 0 || is_query(l, w.row, r) != BACK;

		if (l == 3 && (r != 0) == BACK)
			continue;
#pragma unroll
		for (int n = 0; n < part<S>::K / 8; n++) {
			float2 f = { 1, 1 }, x = pair_get(pair_at<S>(self, t, c + 8 * n));

			if (l >= 0)
				f = decay_at<S, !BACK>(m, l, t, c + 8 * n);
			if (!ours)
				f = x = { 0, 0 };
			dx[n][r] = fmaf(f.x, y[n][r], dx[n][r]);
			dx[n][r + 1] = fmaf(f.y, y[n][r + 1], dx[n][r + 1]);
			own[n][r] = fmaf(x.x, y[n][r], own[n][r]);
			own[n][r + 1] = fmaf(x.y, y[n][r + 1], own[n][r + 1]);
		}
	}
}

/* dx = gradients of outputs, or values, times the state, with decays of the chunk and @scale */
template <class S, bool BACK>
static __device__ __forceinline__ void from_state(float (&dx)[part<S>::K / 8][4],
						  const vector_smem<S> &m, const struct part<S> &w,
						  float scale)
{
#pragma unroll 4
	for (int k = 0; k < S::V / 16; k++) {
		uint32_t a[4];

		mma_left<S::V>(a, BACK ? m.in.v : m.d_o, w.row, k);
		mma_nt<S::V, part<S>::K / 8>(dx, a, m.s, w.key, k);
	}
	mma_pairs<part<S>::K / 8>(w.row, w.key, [&](int n, int r, int t, int c) {
		float2 f = decay_at<S, !BACK>(m, LEVELS, t, c);

		dx[n][r] *= scale * f.x;
		dx[n][r + 1] *= scale * f.y;
	});
}

/* Gradients of a chunk's values. */
template <class S>
static __device__ __forceinline__ void values(float (&dv)[S::OUT_V / 8][4], const vector_smem<S> &m,
					      const struct part<S> &w)
{
#pragma unroll
	for (int k = 0; k < S::K / 16; k++) {
		uint32_t a[4];

		mma_left<S::K>(a, m.tiles.write, w.row, k);
		mma_nn<S::V, S::OUT_V / 8>(dv, a, m.s, k, w.value);
	}
}

template <class S>
static __device__ __forceinline__ void values_scores(float (&dv)[S::OUT_V / 8][4],
						     const vector_smem<S> &m, const struct part<S> &w)
{
#pragma unroll
	for (int k = 0; k < CHUNK / 16; k++) {
		uint32_t a[4];

		if (16 * k < w.row)
			continue;
		mma_left_t<SCORES>(a, m.tiles.a, w.row, k);
		mma_nn<S::V, S::OUT_V / 8>(dv, a, m.d_o, k, w.value);
	}
}

#endif
