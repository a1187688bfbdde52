/* SPDX-License-Identifier: MIT */
/**
 * DOC: linear recurrences with one decay for all of a key, on mma.sync
 *
 * Chunks of TILE positions, where scores are <q, k> times e^(b_t - b_u), masked before the
 * exponential, b the sum of logarithms from the chunk's beginning on. After Dao and Gu 2024,
 * arXiv 2405.21060. Every thread has b at two positions, in powers of 2.
 */
#ifndef TENON_CUDA_LINATTN_MMA_SCALAR_CUH
#define TENON_CUDA_LINATTN_MMA_SCALAR_CUH

#include "segments.cuh"

enum {
	VALUES = 64,			/* columns of a slice of values */
	THREADS = 2 * TILE_THREADS,	/* of a block backward */
};

/* Where a block stands: head @at, segment @n, positions @t0 to @t1, columns @e0 on. */
struct place {
	int i, h, at, n, t0, t1, e0;
};

static __device__ __forceinline__ struct place place_of(const struct mma_run &p, int n)
{
	int at = blockIdx.y;

	return { at / p.a.heads, at % p.a.heads, at, n, n * p.seg, min(p.a.t, (n + 1) * p.seg),
		 (int)blockIdx.z * VALUES };
}

/** mma_scalar_chunks() - gradients of all chunks, from what is kept */
void mma_scalar_chunks(const struct mma_run &p);

/** mma_scalar_chunk_room() - shared memory that a block of it takes */
size_t mma_scalar_chunk_room(const struct linattn &a);

/* Logarithms to base 2 of decays at positions @t + 2 lane and one on. */
static __device__ __forceinline__ float2 decays_get(const struct mma_head &head, int row, int t,
						    int end)
{
	float d[2];

	t += threadIdx.x % 32 * 2;
#pragma unroll
	for (int j = 0; j < 2; j++) {
		d[j] = t + j < end ? head.one : 0;
		if (head.g && t + j < end)
			d[j] = head.g[(long)(t + j) * row] * LOG2E;
	}
	return { d[0], d[1] };
}

/* Their sums from the chunk's beginning on, inclusive. */
static __device__ __forceinline__ float2 decays_sum(float2 d)
{
	float all = d.x + d.y;

#pragma unroll
	for (int step = 1; step < 32; step *= 2) {
		float behind = __shfl_up_sync(~0u, all, step);

		all += threadIdx.x % 32 >= step ? behind : 0;
	}
	return { all - d.y, all };
}

static __device__ __forceinline__ float2 decays_of(float2 b, int lane)
{
	return { __shfl_sync(~0u, b.x, lane), __shfl_sync(~0u, b.y, lane) };
}

/* Of accumulators' rows acc_row(0) and acc_row(2). */
static __device__ __forceinline__ float2 decays_of_rows(float2 b)
{
	float2 lo = decays_of(b, acc_row(0) / 2), hi = decays_of(b, acc_row(2) / 2);

	return acc_row(0) % 2 ? make_float2(lo.y, hi.y) : make_float2(lo.x, hi.x);
}

/*
 * Of accumulators of scores, 8 columns @n: decays and scale, 0 where a query is before a key.
 * @T: rows are keys, columns queries.
 */
template <bool T>
static __device__ __forceinline__ void decays_scale(float (&c)[4], int n, float2 b, float2 rows,
						    float scale)
{
	float2 cols = decays_of(b, acc_col(n, 0) / 2);

#pragma unroll
	for (int i = 0; i < 4; i++) {
		float gap = (i < 2 ? rows.x : rows.y) - (i % 2 ? cols.y : cols.x);
		bool behind = T ? acc_col(n, i) < acc_row(i) : acc_col(n, i) > acc_row(i);

		c[i] *= scale * exp2_fast(behind ? -INFINITY : T ? -gap : gap);
	}
}

/* @x times a factor for each of its two columns, rounded once more */
static __device__ __forceinline__ uint32_t scaled(uint32_t x, float2 f)
{
	float2 v = __bfloat1622float2(*(__nv_bfloat162 *)&x);

	return pack_bf16(v.x * f.x, v.y * f.y);
}

/* Decays from positions @b on to the chunk's end, or with @BACK from its beginning to them. */
template <bool BACK>
static __device__ __forceinline__ float2 decays_to(float2 b, float all, float scale)
{
	if (BACK)
		return { scale * exp2_fast(b.x), scale * exp2_fast(b.y) };
	return { scale * exp2_fast(all - b.x), scale * exp2_fast(all - b.y) };
}

/*
 * R times 16 rows of a state from @row on, columns @col on, of which there are 8 N, take in a
 * chunk: x^T y with decays. @BACK: of its gradient, x queries, y gradients of outputs; else x
 * keys, y values.
 */
template <int W, bool BACK, int R, int N>
static __device__ __forceinline__ void take_in(float (&s)[R][N][4], const bf16 *x, const bf16 *y,
					       int row, int col, float2 b, float scale)
{
	float all = __shfl_sync(~0u, b.y, 31), end = exp2_fast(all);

#pragma unroll
	for (int i = 0; i < R; i++)
		mma_rows_scale<N>(s[i], end, end);
#pragma unroll
	for (int k = 0; k < TILE / 16; k++) {
		float2 lo = decays_of(b, acc_col(2 * k, 0) / 2);
		float2 hi = decays_of(b, acc_col(2 * k + 1, 0) / 2);

		lo = decays_to<BACK>(lo, all, scale);
		hi = decays_to<BACK>(hi, all, scale);
#pragma unroll
		for (int i = 0; i < R; i++) {
			uint32_t a[4];

			mma_left_t<W>(a, x, row + 16 * i, k);
			a[0] = scaled(a[0], lo);
			a[1] = scaled(a[1], lo);
			a[2] = scaled(a[2], hi);
			a[3] = scaled(a[3], hi);
			mma_nn<VALUES, N>(s[i], a, y, k, col);
		}
	}
}

#endif
