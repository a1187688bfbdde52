/* SPDX-License-Identifier: MIT */
/**
 * DOC: tiles of attention in float, on ordinary multiply-adds
 *
 * What attn_mma.cuh has for bf16, for builds that check: the same threads hold the same
 * accumulators, so whatever stands between the products serves both. A tile is TILE rows by
 * W columns of float in shared memory, as they are. Nothing here is tuned.
 */
#ifndef TENON_CUDA_ATTN_FMA_CUH
#define TENON_CUDA_ATTN_FMA_CUH

#include "attn_tile.cuh"

/* One head of one sequence: element (pos, e) at p[pos * row + e]. */
struct head_view {
	const float *p;
	long row;
};

/* The left operand of mul_nn(): accumulators as they are. */
typedef tile_acc tile_operand;

/** tile_at() - address of chunk @c (8 elements) of row @r */
template <int W> static __device__ __forceinline__ int tile_at(int r, int c)
{
	return r * W + c * 8;
}

/** tile_load() - as attn_mma.cuh's; done when the threads' next barrier is */
template <int W>
static __device__ __forceinline__ void tile_load(float *s, const struct head_view &v, int pos,
						 int t, int e0, int width, bool vec)
{
	(void)vec;
	for (int n = threadIdx.x; n < TILE * W; n += TILE_THREADS) {
		int r = n / W, e = e0 + n % W;
		bool inside = pos + r < t && e < width;

		s[n] = inside ? v.p[(long)(pos + r) * v.row + e] : 0;
	}
}

/** mul_nt() - c[16][TILE] += x[16][W] y[TILE][W]^T, the warp's rows of x */
template <int W>
static __device__ __forceinline__ void mul_nt(tile_acc &c, const float *x, const float *y)
{
#pragma unroll 2
	for (int k = 0; k < W; k++) {
		float a[2] = { x[acc_row(0) * W + k], x[acc_row(2) * W + k] };

#pragma unroll
		for (int n = 0; n < TILE_N; n++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				c[n][i] = fmaf(a[i / 2], y[acc_col(n, i) * W + k], c[n][i]);
	}
}

static __device__ __forceinline__ void operand_of(tile_operand &a, const tile_acc &c)
{
#pragma unroll
	for (int n = 0; n < TILE_N; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			a[n][i] = c[n][i];
}

/** operand_put() - accumulators to a tile [TILE][TILE] in shared memory */
static __device__ __forceinline__ void operand_put(float *p, const tile_acc &c)
{
#pragma unroll
	for (int n = 0; n < TILE_N; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			p[acc_row(i) * TILE + acc_col(n, i)] = c[n][i];
}

/** operand_transposed() - the warp's 16 rows of the transposed tile of operand_put() */
static __device__ __forceinline__ void operand_transposed(tile_operand &a, const float *p)
{
#pragma unroll
	for (int n = 0; n < TILE_N; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			a[n][i] = p[acc_col(n, i) * TILE + acc_row(i)];
}

/**
 * mul_nn() - c[16][W] += a[16][TILE] y[TILE][W]
 *
 * The entries of a row of a are in four neighbouring lanes: each is handed round.
 */
template <int W>
static __device__ __forceinline__ void mul_nn(float (*c)[4], const tile_operand &a, const float *y)
{
#pragma unroll
	for (int k = 0; k < TILE; k++) {
		int from = threadIdx.x % 32 / 4 * 4 + k % 8 / 2;
		float p[2] = { __shfl_sync(~0u, a[k / 8][k % 2], from),
			       __shfl_sync(~0u, a[k / 8][2 + k % 2], from) };

#pragma unroll
		for (int n = 0; n < W / 8; n++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				c[n][i] = fmaf(p[i / 2], y[k * W + acc_col(n, i)], c[n][i]);
	}
}

#endif
