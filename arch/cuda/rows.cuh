/* SPDX-License-Identifier: MIT */
/**
 * DOC: rows of elements
 *
 * Threads take W elements at a time: 8, where every row begins at a multiple of 16
 * bytes, or 1. Sums over lanes, blocks and rows have one order, whatever the device.
 */
#ifndef TENON_CUDA_ROWS_CUH
#define TENON_CUDA_ROWS_CUH

#include "common.cuh"

enum { WIDE = 8 };	/* elements of a thread: 16 bytes of bf16 */

/** row_load() - x[0..W) of p, widened */
template <int W> static __device__ __forceinline__ void row_load(float (&x)[W], const bf16 *p)
{
	if constexpr (W == WIDE) {
		uint4 u = *(const uint4 *)p;
		const __nv_bfloat162 *pair = (const __nv_bfloat162 *)&u;

#pragma unroll
		for (int i = 0; i < W / 2; i++) {
			float2 f = __bfloat1622float2(pair[i]);

			x[2 * i] = f.x;
			x[2 * i + 1] = f.y;
		}
	} else {
#pragma unroll
		for (int i = 0; i < W; i++)
			x[i] = get(p + i);
	}
}

template <int W> static __device__ __forceinline__ void row_load(float (&x)[W], const float *p)
{
	if constexpr (W % 4 == 0) {
#pragma unroll
		for (int i = 0; i < W; i += 4)
			*(float4 *)&x[i] = *(const float4 *)(p + i);
	} else {
#pragma unroll
		for (int i = 0; i < W; i++)
			x[i] = p[i];
	}
}

/**
 * struct row_raw - W elements as they lie in memory
 *
 * Copying many of them before the first is widened has all loads under way at once.
 */
template <int W> struct alignas(W == WIDE ? 16 : sizeof(real)) row_raw {
	real e[W];
};

/** row_store() - p[0..W) = x, rounded to nearest even */
template <int W> static __device__ __forceinline__ void row_store(bf16 *p, const float (&x)[W])
{
	if constexpr (W == WIDE) {
		*(uint4 *)p = make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]),
					 pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
	} else if constexpr (W == 4) {
		*(uint2 *)p = make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
	} else {
#pragma unroll
		for (int i = 0; i < W; i++)
			put(p + i, x[i]);
	}
}

template <int W> static __device__ __forceinline__ void row_store(float *p, const float (&x)[W])
{
	if constexpr (W % 4 == 0) {
#pragma unroll
		for (int i = 0; i < W; i += 4)
			*(float4 *)(p + i) = *(const float4 *)&x[i];
	} else {
#pragma unroll
		for (int i = 0; i < W; i++)
			p[i] = x[i];
	}
}

/** row_wide() - may a tensor of rows with this stride be read WIDE elements at a time? */
static inline bool row_wide(const void *p, long ld)
{
	return (uintptr_t)p % 16 == 0 && ld % WIDE == 0;
}

/** warp_sum() - of the 32 lanes, to all of them */
template <class T> static __device__ __forceinline__ T warp_sum(T x)
{
#pragma unroll
	for (int step = 16; step; step /= 2)
		x += __shfl_xor_sync(~0u, x, step);
	return x;
}

/**
 * block_sum() - of all threads, to all of them
 * @part: [32] shared
 *
 * blockDim.x is a multiple of 32 and the other dimensions are 1.
 */
template <class T> static __device__ __forceinline__ T block_sum(T x, T *part)
{
	int warps = blockDim.x / 32;

	x = warp_sum(x);
	__syncthreads();
	if (threadIdx.x % 32 == 0)
		part[threadIdx.x / 32] = x;
	__syncthreads();
	x = threadIdx.x % 32 < warps ? part[threadIdx.x % 32] : 0;
	return warp_sum(x);
}

/* ---- sums down columns -------------------------------------------------------- */

enum {
	SUM_LANES = 32,		/* threads side by side */
	SUM_ROWS = 8,		/* threads one below the other */
	PART_LANES = 8,		/* the same of the second stage, in small blocks: */
	PART_ROWS = 16,		/* they find room beside those of the first */
	SUM_CHUNKS = 128,	/* parts of the rows, at most */
	SUM_CHUNK_MIN = 64,	/* rows of one, at least */
};

enum { PART_BYTES = 18 << 20 };		/* most of workspace_part(): 16 states of 32,768 positions */

/** workspace_part() - device memory for parts of sums, @bytes of it, until the next call */
extern "C" void *workspace_part(size_t bytes);

/* Rows of a chunk: of the number of rows alone. */
static inline int sum_chunk(int n)
{
	int rows = div_up(n, SUM_CHUNKS);

	return rows < SUM_CHUNK_MIN ? SUM_CHUNK_MIN : rows;
}

/*
 * part[chunk][s][c]: @S sums down the rows of a chunk. row(v, i, j) gives what row i
 * adds to columns j..j+W-1.
 */
template <int S, int W, class F>
static __global__ void __launch_bounds__(SUM_LANES * SUM_ROWS)
sum_chunk_kernel(float *part, F row, int n, int c, int rows)
{
	__shared__ float all[SUM_ROWS][SUM_LANES * W + 1];
	int j = (blockIdx.x * SUM_LANES + threadIdx.x) * W, i0 = blockIdx.y * rows;
	int end = i0 + rows < n ? i0 + rows : n;
	float sum[S][W] = {}, v[S][W];

	if (j < c)
#pragma unroll 4
		for (int i = i0 + threadIdx.y; i < end; i += SUM_ROWS) {
			row(v, i, j);
#pragma unroll
			for (int s = 0; s < S; s++)
				for (int e = 0; e < W; e++)
					sum[s][e] += v[s][e];
		}
	for (int s = 0; s < S; s++) {
		__syncthreads();
		for (int e = 0; e < W; e++)
			all[threadIdx.y][threadIdx.x * W + e] = sum[s][e];
		__syncthreads();
		for (int e = threadIdx.y * SUM_LANES + threadIdx.x; e < SUM_LANES * W;
		     e += SUM_LANES * SUM_ROWS) {
			int to = blockIdx.x * SUM_LANES * W + e;
			float total = 0;

			for (int r = 0; r < SUM_ROWS; r++)
				total += all[r][e];
			if (to < c)
				part[((long)blockIdx.y * S + s) * c + to] = total;
		}
	}
}

/* dst[s][c], or nothing where it is NULL: the chunks in one order, in double */
template <int S> struct sum_to {
	float *dst[S];
};

template <int S> static __global__ void __launch_bounds__(PART_LANES * PART_ROWS)
sum_parts_kernel(struct sum_to<S> to, const float *part, int chunks, int c)
{
	__shared__ double all[PART_ROWS][PART_LANES];
	int j = blockIdx.x * PART_LANES + threadIdx.x, s = blockIdx.y;
	double sum = 0;

	let_next();
	after_previous();
	if (!to.dst[s])
		return;
	if (j < c)
#pragma unroll 8
		for (int i = threadIdx.y; i < chunks; i += PART_ROWS)
			sum += part[((long)i * S + s) * c + j];
	all[threadIdx.y][threadIdx.x] = sum;
	__syncthreads();
	if (threadIdx.y || j >= c)
		return;
	for (int r = 1; r < PART_ROWS; r++)
		sum += all[r][threadIdx.x];
	to.dst[s][j] = sum;
}

/** sum_parts() - to.dst[s][j] = sum of part[chunk][s][j] */
template <int S>
static void sum_parts(const struct sum_to<S> &to, const float *part, int chunks, int c)
{
	dim3 grid(div_up(c, PART_LANES), S), block(PART_LANES, PART_ROWS);

	launch(sum_parts_kernel<S>, grid, block, 0, to, part, chunks, c);
}

/**
 * sum_columns() - to.dst[s][j] = sum over i < n of v[s][j] of row(v, i, j)
 * @c: columns
 */
template <int S, int W, class F>
static void sum_columns(const struct sum_to<S> &to, F row, int n, int c)
{
	int rows = sum_chunk(n), chunks = div_up(n, rows);
	float *part = (float *)workspace_part((size_t)chunks * S * c * sizeof(*part));
	dim3 grid(div_up(c, SUM_LANES * W), chunks), block(SUM_LANES, SUM_ROWS);

	sum_chunk_kernel<S, W><<<grid, block, 0, cuda_stream()>>>(part, row, n, c, rows);
	CUDA_LAUNCHED();
	sum_parts(to, part, chunks, c);
}

/* ---- sums of doubles ----------------------------------------------------------- */

enum { DOUBLES_THREADS = 256 };

/* One block; @N: its threads */
template <int N> static __global__ void __launch_bounds__(N)
sum_doubles_kernel(double *dst, const double *part, int n, double weight, double beta)
{
	__shared__ double all[32];
	double sum = 0;

	after_previous();
	for (int i = threadIdx.x; i < n; i += N)
		sum += part[i];
	sum = block_sum(sum, all);
	if (!threadIdx.x)
		*dst = weight * sum + (beta != 0 ? beta * *dst : 0);
}

/** sum_doubles() - *dst = weight times the sum of part[n], in one order, + beta *dst */
template <int N = DOUBLES_THREADS>
static void sum_doubles(double *dst, const double *part, int n, double weight, double beta)
{
	launch(sum_doubles_kernel<N>, 1, N, 0, dst, part, n, weight, beta);
}

#endif
