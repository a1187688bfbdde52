/* SPDX-License-Identifier: MIT */
/**
 * DOC: linear recurrences whose decays are vectors backward, on mma.sync: products of a chunk
 *
 * With D the scores' gradients, D_tu = <do_t, v_u>, made symmetric, one product of each level
 * gives what queries get from keys, in their rows, and what keys get from queries.
 */
#ifndef TENON_CUDA_LINATTN_MMA_VECTOR_GRADS_CUH
#define TENON_CUDA_LINATTN_MMA_VECTOR_GRADS_CUH

#include "vector_bwd.cuh"
#include "../wgmma.cuh"

/* Scores of level @l, 16 rows by 16 columns; those above the diagonal become 0. */
template <class S>
static __device__ __forceinline__ void score_tile(bwd_smem<S> &m, int l, int row, int col,
						  float scale)
{
	const bf16 *q = l < 0 ? m.q : m.x[l % GROUP], *k = l < 0 ? m.k : m.x[l % GROUP];
	float c[2][4] = {};

	score_product<S::K>(c, q, k, row, col);
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

/* D before the scale, a tile of 16 by 16 for each warp; on wgmma it is asynchronous. */
template <class S>
static __device__ __forceinline__ void score_grads(float (&c)[2][4], const bwd_smem<S> &m)
{
	int warp = threadIdx.x / 32, col = warp / 4 * 16;

#if WGMMA_BODY
	wgmma_fence();
#pragma unroll
	for (int n = 0; n < S::V / 16; n++)
		wgmma_ss(c, block_desc(m.d_o[n / 4]) + 2 * (n % 4),
			 block_desc(m.v[n / 4] + col * VALUES) + 2 * (n % 4));
	wgmma_commit();
#else
	int row = warp % 4 * 16;

	for (int n = 0; col <= row && n < S::V / 16; n++) {
		uint32_t a[4];

		mma_left<VALUES>(a, m.d_o[n / 4], row, n % 4);
		mma_nt<VALUES, 2>(c, a, m.v[n / 4], col, n % 4);
	}
#endif
}

/* It in m.d, when it is there. */
template <class S>
static __device__ __forceinline__ void score_grads_put(bwd_smem<S> &m, float (&c)[2][4],
						       float scale)
{
	int warp = threadIdx.x / 32, row = warp % 4 * 16, col = warp / 4 * 16;

#if WGMMA_BODY
	wgmma_wait<0>();
	acc_pin(c);
#endif
	if (col > row)
		return;
	mma_pairs<2>(row, col, [&](int n, int r, int t, int u) {
#pragma unroll
		for (int i = 0; i < 2; i++, u++) {
			bf16 d = __float2bfloat16(scale * c[n][r + i]);

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

/* Gradients of slice @j of a chunk's values: what scores give. */
template <class S>
static __device__ __forceinline__ void values_near(float (&dv)[VALUES / 32][4],
						   const bwd_smem<S> &m, const struct part<S> &w,
						   int j)
{
#pragma unroll
	for (int k = 0; k < TILE / 16; k++) {
		uint32_t a[4];

		if (16 * k < w.row)
			continue;
		mma_left_t<TILE>(a, m.a, w.row, k);
		mma_nn<VALUES, VALUES / 32>(dv, a, m.d_o[j], k, w.value);
	}
}

/* dv += rows of k, 64 columns from 16 @n on, times those rows of the columns @s */
template <class S>
static __device__ __forceinline__ void add_values(float (&dv)[VALUES / 32][4], const bwd_smem<S> &m,
						  const bf16 *s, const struct part<S> &w, int n)
{
	uint32_t k[4][4];

#pragma unroll
	for (int j = 0; j < 4; j++)
		mma_left<S::K>(k[j], m.k, w.row, n + j);
#if WGMMA_BODY
	uint64_t columns = block_desc(s + w.value) + 128 * n;	/* 16 rows are 128 units */

	acc_pin(dv);
	wgmma_fence();
#pragma unroll
	for (int j = 0; j < 4; j++)
		wgmma_rs(dv, k[j], columns + 128 * j);
	wgmma_commit();
#else
#pragma unroll
	for (int j = 0; j < 4; j++)
		mma_nn<VALUES, VALUES / 32>(dv, k[j], s, n + j, w.value);
#endif
}

/*
 * What slice @j of the state and of the gradient give, @s: dq += do S^T, dk += v dS^T, dv += k dS.
 * On wgmma a warpgroup reads its part of them once; then it is asynchronous.
 */
template <class S>
static __device__ __forceinline__ void far(float (&dq)[part<S>::N][4], float (&dk)[part<S>::N][4],
					   float (&dv)[VALUES / 32][4], const bwd_smem<S> &m,
					   const bf16 (*s)[S::K * VALUES], const struct part<S> &w,
					   int j)
{
	add_values<S>(dv, m, s[1], w, 0);
#if WGMMA_BODY
	uint64_t d_o = block_desc(m.d_o[j]), v = block_desc(m.v[j]);
	uint64_t state = block_desc(s[0] + w.key * VALUES), ds = block_desc(s[1] + w.key * VALUES);

#pragma unroll
	for (int n = 0; n < VALUES / 16; n++) {	/* 16 columns are 2 units of a descriptor */
		wgmma_ss(dq, d_o + 2 * n, state + 2 * n);
		wgmma_ss(dk, v + 2 * n, ds + 2 * n);
	}
	wgmma_commit();
	wgmma_wait<1>();
#else
#pragma unroll
	for (int n = 0; n < VALUES / 16; n++) {
		uint32_t a[4];

		mma_left<VALUES>(a, m.d_o[j], w.row, n);
		mma_nt<VALUES, part<S>::N>(dq, a, s[0], w.key, n);
		mma_left<VALUES>(a, m.v[j], w.row, n);
		mma_nt<VALUES, part<S>::N>(dk, a, s[1], w.key, n);
	}
#endif
	if (S::K > 64)
		add_values<S>(dv, m, s[1], w, 4);
}

/* Until that is done. */
template <class S>
static __device__ __forceinline__ void far_wait(float (&dq)[part<S>::N][4],
						float (&dk)[part<S>::N][4],
						float (&dv)[VALUES / 32][4])
{
#if WGMMA_BODY
	wgmma_wait<0>();
	acc_pin(dq);
	acc_pin(dk);
	acc_pin(dv);
#endif
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
