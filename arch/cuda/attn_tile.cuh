/* SPDX-License-Identifier: MIT */
/**
 * DOC: a tile of scores in registers
 *
 * What attention computes between its products, on TILE by TILE accumulators of four
 * warps with 16 rows each. Both mma.sync m16n8k16 and wgmma m64n64k16 hold element
 * (row, column) in c[n][i] of the thread for which acc_row(i) and acc_col(n, i) say so.
 * Scores come unscaled; scale here is that of the scores times log2(e), so that
 * exponentials are powers of 2.
 */
#ifndef TENON_CUDA_ATTN_TILE_CUH
#define TENON_CUDA_ATTN_TILE_CUH

#include "common.cuh"

enum {
	TILE = 64,
	TILE_N = TILE / 8,	/* accumulators of 8 columns */
	TILE_THREADS = 128,
};

typedef float tile_acc[TILE_N][4];

/* The same rounded: the left operand of a product, 16 columns each. */
typedef uint32_t tile_left[TILE / 16][4];

static __device__ __forceinline__ int acc_row(int i)
{
	return threadIdx.x % TILE_THREADS / 32 * 16 + threadIdx.x % 32 / 4 + i / 2 * 8;
}

static __device__ __forceinline__ int acc_col(int n, int i)
{
	return 8 * n + threadIdx.x % 4 * 2 + i % 2;
}

/* Accumulators of columns 16k.. and 16k + 8.. to a[k]. */
static __device__ __forceinline__ void acc_pack(uint32_t (&a)[4], const float (&lo)[4],
						const float (&hi)[4])
{
	a[0] = pack_bf16(lo[0], lo[1]);
	a[1] = pack_bf16(lo[2], lo[3]);
	a[2] = pack_bf16(hi[0], hi[1]);
	a[3] = pack_bf16(hi[2], hi[3]);
}

static __device__ __forceinline__ void tile_pack(tile_left &a, const tile_acc &c)
{
#pragma unroll
	for (int k = 0; k < TILE / 16; k++)
		acc_pack(a[k], c[2 * k], c[2 * k + 1]);
}

/* Over the four lanes that hold a row. */
static __device__ __forceinline__ float row_max(float x)
{
	x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
	return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

static __device__ __forceinline__ float row_sum(float x)
{
	x += __shfl_xor_sync(~0u, x, 1);
	return x + __shfl_xor_sync(~0u, x, 2);
}

/* Rows queries, columns keys, on the diagonal: keys behind their query get minus infinity. */
static __device__ __forceinline__ void tile_mask(tile_acc &s)
{
#pragma unroll
	for (int n = 0; n < TILE_N; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			s[n][i] = acc_col(n, i) > acc_row(i) ? -INFINITY : s[n][i];
}

/*
 * The maximum that exponentials are relative to may stay behind the true one by so many
 * powers of 2: neither float sums nor the relative error of rounded exponentials mind, and
 * sums are rarely rescaled. After Zadouri et al. 2026 (FlashAttention-4).
 */
#define MAX_LAG 8.0f

/**
 * tile_softmax() - exponentials of scores relative to a running maximum
 * @p: exponentials, rounded
 * @o: [OUTPUTS / 8] accumulators of the output, rescaled where the maximum is renewed
 * @max: that of each of the thread's two rows, unscaled
 * @sum: this thread's part of the sum of exponentials (not rounded) of its rows
 */
template <int OUTPUTS>
static __device__ __forceinline__ void tile_softmax(tile_acc &s, tile_left &p, float (*o)[4],
						    float (&max)[2], float (&sum)[2], float scale)
{
	float m[2], low[2];

#pragma unroll
	for (int r = 0; r < 2; r++) {
		m[r] = fmaxf(s[0][2 * r], s[0][2 * r + 1]);
#pragma unroll
		for (int n = 1; n < TILE_N; n++)
			m[r] = fmaxf(m[r], fmaxf(s[n][2 * r], s[n][2 * r + 1]));
		m[r] = fmaxf(max[r], row_max(m[r]));
	}
	if (__any_sync(~0u, (m[0] - max[0]) * scale > MAX_LAG ||
			    (m[1] - max[1]) * scale > MAX_LAG)) {
#pragma unroll
		for (int r = 0; r < 2; r++) {
			float fix = exp2_fast((max[r] - m[r]) * scale);

			max[r] = m[r];
			sum[r] *= fix;
#pragma unroll
			for (int n = 0; n < OUTPUTS / 8; n++) {
				o[n][2 * r] *= fix;
				o[n][2 * r + 1] *= fix;
			}
		}
	}
	low[0] = max[0] * scale;
	low[1] = max[1] * scale;
#pragma unroll
	for (int n = 0; n < TILE_N; n++) {
#pragma unroll
		for (int i = 0; i < 4; i++) {
			s[n][i] = exp2_fast(fmaf(s[n][i], scale, -low[i / 2]));
			sum[i / 2] += s[n][i];
		}
		if (n % 2)
			acc_pack(p[n / 2], s[n - 1], s[n]);
	}
}

/* Backward, rows queries: what a thread needs of its two rows. */
struct row_stats {
	float lse[2], delta[2], gamma[2];	/* lse times log2(e) */
};

/* Scores and dP to ds = P (gamma dP - delta), rounded; masked where @diagonal. */
static __device__ __forceinline__ void tile_ds(tile_left &ds, tile_acc &s, tile_acc &dp,
					       const struct row_stats &r, float scale,
					       bool diagonal)
{
#pragma unroll
	for (int n = 0; n < TILE_N; n++) {
#pragma unroll
		for (int i = 0; i < 4; i++) {
			float p = exp2_fast(fmaf(s[n][i], scale, -r.lse[i / 2]));

			p *= fmaf(dp[n][i], r.gamma[i / 2], -r.delta[i / 2]);
			dp[n][i] = diagonal && acc_col(n, i) > acc_row(i) ? 0 : p;
		}
		if (n % 2)
			acc_pack(ds[n / 2], dp[n - 1], dp[n]);
	}
}

/*
 * Backward, rows keys: values of the columns' queries, in shared memory; gamma only
 * where there is one. Behind the end all are 0: P is finite there, and meets rows of d_o
 * and ds that are 0.
 */
struct col_stats {
	float lse[TILE], delta[TILE], gamma[TILE];
};

/* Those of columns acc_col(n, 0) and acc_col(n, 1), read here and not before: registers. */
static __device__ __forceinline__ float2 col_pair(const float *p, int n)
{
	float2 v;

	asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y)
		     : "r"((uint32_t)__cvta_generic_to_shared(p + acc_col(n, 0))) : "memory");
	return v;
}

/* Scores to P; @left = gamma P, rounded. */
template <bool GAMMA>
static __device__ __forceinline__ void tile_probs_t(tile_acc &s, tile_left &left,
						    const struct col_stats *stats, float scale,
						    bool diagonal)
{
#pragma unroll
	for (int n = 0; n < TILE_N; n++) {
		float2 lse = col_pair(stats->lse, n);

#pragma unroll
		for (int i = 0; i < 4; i++)
			s[n][i] = exp2_fast(fmaf(s[n][i], scale,
						 (i % 2 ? lse.y : lse.x) * -LOG2E));
	}
	if (diagonal) {
#pragma unroll
		for (int n = 0; n < TILE_N; n++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				s[n][i] = acc_col(n, i) < acc_row(i) ? 0 : s[n][i];
	}
#pragma unroll
	for (int n = 0; n < TILE_N; n += 2) {
		if (GAMMA) {
			float2 g = col_pair(stats->gamma, n), h = col_pair(stats->gamma, n + 1);
			const float lo[4] = { s[n][0] * g.x, s[n][1] * g.y, s[n][2] * g.x,
					      s[n][3] * g.y };
			const float hi[4] = { s[n + 1][0] * h.x, s[n + 1][1] * h.y,
					      s[n + 1][2] * h.x, s[n + 1][3] * h.y };

			acc_pack(left[n / 2], lo, hi);
		} else {
			acc_pack(left[n / 2], s[n], s[n + 1]);
		}
	}
}

/* P and dP: dP becomes ds = P (gamma dP - delta). */
template <bool GAMMA>
static __device__ __forceinline__ void tile_ds_t(const tile_acc &p, tile_acc &dp,
						 const struct col_stats *stats)
{
#pragma unroll
	for (int n = 0; n < TILE_N; n++) {
		float2 delta = col_pair(stats->delta, n), gamma = { 1, 1 };

		if (GAMMA)
			gamma = col_pair(stats->gamma, n);
#pragma unroll
		for (int i = 0; i < 4; i++)
			dp[n][i] = p[n][i] * fmaf(dp[n][i], i % 2 ? gamma.y : gamma.x,
						  -(i % 2 ? delta.y : delta.x));
	}
}

/**
 * rows_store() - accumulators to rows of a tensor
 * @dst: element (position, column) at dst[position * row + column]
 * @pos: position of the tile's first row; rows from @t on are not written
 * @e0: column of the accumulators' first; columns from @width on are not written
 * @c: [W / 8]
 * @f0: factor of rows acc_row(0), @f1 of rows acc_row(2)
 * @vec: pairs of columns may be written at once
 */
template <int W>
static __device__ __forceinline__ void rows_store(bf16 *dst, long row, int pos, int t, int e0,
						  int width, const float (*c)[4], float f0,
						  float f1, bool vec)
{
#pragma unroll
	for (int i = 0; i < 4; i += 2) {
		int at = pos + acc_row(i);
		float f = i ? f1 : f0;

		if (at >= t)
			continue;
#pragma unroll
		for (int n = 0; n < W / 8; n++) {
			int e = e0 + acc_col(n, 0);
			bf16 *p = dst + at * row + e;

			if (vec && e < width) {
				*(uint32_t *)p = pack_bf16(c[n][i] * f, c[n][i + 1] * f);
				continue;
			}
			if (e < width)
				p[0] = __float2bfloat16(c[n][i] * f);
			if (e + 1 < width)
				p[1] = __float2bfloat16(c[n][i + 1] * f);
		}
	}
}

#endif
