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
 * sums are rarely rescaled. As FlashAttention-4 does.
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
		for (int i = 0; i < 4; i++)
			s[n][i] = exp2_fast(fmaf(s[n][i], scale, -low[i / 2]));
		sum[0] += s[n][0] + s[n][1];
		sum[1] += s[n][2] + s[n][3];
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

/*
 * Scores and dP to gamma P and ds = P (gamma dP - delta), rounded, 16 columns at a time:
 * few values are alive at once. @MASK: the tile is on the diagonal.
 */
template <bool GAMMA, bool MASK>
static __device__ __forceinline__ void tile_bwd_t(tile_left &prob, tile_left &ds, tile_acc &s,
						  tile_acc &dp, const struct col_stats *stats,
						  float scale)
{
#pragma unroll
	for (int n = 0; n < TILE_N; n++) {
		float2 lse = col_pair(stats->lse, n), delta = col_pair(stats->delta, n);
		float2 gamma = { 1, 1 };

		if (GAMMA)
			gamma = col_pair(stats->gamma, n);
#pragma unroll
		for (int i = 0; i < 4; i++) {
			float g = i % 2 ? gamma.y : gamma.x, low = i % 2 ? lse.y : lse.x;
			float p = exp2_fast(fmaf(s[n][i], scale, low * -LOG2E));

			if (MASK)
				p = acc_col(n, i) < acc_row(i) ? 0 : p;
			dp[n][i] = p * fmaf(dp[n][i], g, -(i % 2 ? delta.y : delta.x));
			s[n][i] = GAMMA ? p * g : p;
		}
		if (n % 2) {
			acc_pack(prob[n / 2], s[n - 1], s[n]);
			acc_pack(ds[n / 2], dp[n - 1], dp[n]);
		}
	}
}

/*
 * Four registers of four neighbouring lanes, transposed: register m of lane j becomes
 * register j of lane m.
 */
static __device__ __forceinline__ void quad_transpose(uint32_t (&v)[4])
{
	bool odd = threadIdx.x & 1, high = threadIdx.x & 2;

#pragma unroll
	for (int n = 0; n < 4; n += 2) {
		uint32_t got = __shfl_xor_sync(~0u, odd ? v[n] : v[n + 1], 1);

		v[n] = odd ? got : v[n];
		v[n + 1] = odd ? v[n + 1] : got;
	}
#pragma unroll
	for (int n = 0; n < 2; n++) {
		uint32_t got = __shfl_xor_sync(~0u, high ? v[n] : v[n + 2], 2);

		v[n] = high ? got : v[n];
		v[n + 2] = high ? v[n + 2] : got;
	}
}

/**
 * rows_store() - accumulators to rows of a tensor
 * @dst: element (position, column) at dst[position * row + column]
 * @pos: position of the tile's first row; rows from @t on are not written
 * @e0: column of the accumulators' first; columns from @width on are not written
 * @c: [W / 8]
 * @f0: factor of rows acc_row(0), @f1 of rows acc_row(2)
 * @vec: rows begin at multiples of 16 bytes and width is a multiple of 8
 */
template <int W>
static __device__ __forceinline__ void rows_store(real *dst, long row, int pos, int t, int e0,
						  int width, const float (*c)[4], float f0,
						  float f1, bool vec)
{
	vec = vec && sizeof(real) == sizeof(bf16);	/* float: no more than checks */
#pragma unroll
	for (int i = 0; i < 4; i += 2) {
		int at = pos + acc_row(i);
		float f = i ? f1 : f0;

#pragma unroll
		for (int n = 0; vec && n < W / 8; n += 4) {
			int e = e0 + 8 * (n + threadIdx.x % 4);
			uint32_t v[4];

#pragma unroll
			for (int k = 0; k < 4; k++)
				v[k] = pack_bf16(c[n + k][i] * f, c[n + k][i + 1] * f);
			quad_transpose(v);
			if (at < t && e < width)
				*(uint4 *)(dst + at * row + e) = make_uint4(v[0], v[1], v[2], v[3]);
		}
#pragma unroll
		for (int n = 0; !vec && n < W / 8; n++) {
#pragma unroll
			for (int k = 0; k < 2; k++) {
				int e = e0 + acc_col(n, k);

				if (at < t && e < width)
					put(dst + at * row + e, c[n][i + k] * f);
			}
		}
	}
}

#endif
