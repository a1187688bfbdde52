/* SPDX-License-Identifier: MIT */
/**
 * DOC: tiles of linear recurrences for mma.sync (sm_80 and later)
 *
 * As attn_mma.cuh has them, for any number of warps: products of 16 rows by any columns, and
 * states in accumulators. Tiles begin at multiples of 128 bytes.
 */
#ifndef TENON_CUDA_LINATTN_MMA_MMA_TILE_CUH
#define TENON_CUDA_LINATTN_MMA_MMA_TILE_CUH

#include "../attn_mma.cuh"

/** mma_each() - f(0) to f(@N - 1), each in a thread of its own as far as they reach */
template <int N, int THREADS, class F> static __device__ __forceinline__ void mma_each(F f)
{
#pragma unroll
	for (int i = 0; i < N / THREADS; i++)
		f(threadIdx.x + i * THREADS);
	if (N % THREADS && threadIdx.x < N % THREADS)
		f(threadIdx.x + N / THREADS * THREADS);
}

/* Two neighbouring elements. */
static __device__ __forceinline__ float2 pair_get(const bf16 *p)
{
	return __bfloat1622float2(*(const __nv_bfloat162 *)p);
}

static __device__ __forceinline__ void pair_put(bf16 *p, float2 x)
{
	*(uint32_t *)p = pack_bf16(x.x, x.y);
}

/*
 * f(n, i, row, column) for each two of a lane's accumulators that lie side by side, c[n][i] and
 * c[n][i + 1], of 16 rows from @row and 8 @N columns from @col on.
 */
template <int N, class F>
static __device__ __forceinline__ void mma_pairs(int row, int col, F f)
{
	row += threadIdx.x % 32 / 4;
	col += threadIdx.x % 4 * 2;
#pragma unroll
	for (int i = 0; i < 4; i += 2)
#pragma unroll
		for (int n = 0; n < N; n++)
			f(n, i, row + i * 4, col + 8 * n);
}

/*
 * Two pairs of columns of tiles side by side, rounded: neighbours swap, so that each has four
 * columns in a row, the odd ones of the second tile.
 */
static __device__ __forceinline__ uint2 mma_swap(const float *one, const float *next)
{
	uint32_t lo = pack_bf16(one[0], one[1]), hi = pack_bf16(next[0], next[1]);
	bool odd = threadIdx.x % 2;
	uint32_t other = __shfl_xor_sync(~0u, odd ? lo : hi, 1);

	return odd ? make_uint2(other, hi) : make_uint2(lo, other);
}

/* The first of those columns, of those from 0 on. */
static __device__ __forceinline__ int mma_swap_col(void)
{
	return threadIdx.x % 2 * 8 + threadIdx.x % 4 / 2 * 4;
}

/* 16 rows of a state, of columns from @col on, of which there are 8 @N: accumulators. */
template <int N>
static __device__ __forceinline__ void mma_state_get(float (*c)[4], const float *state, int row,
						     int col, int dk, int dv)
{
	row += threadIdx.x % 32 / 4;
	col += threadIdx.x % 4 * 2;
#pragma unroll
	for (int n = 0; n < N; n++)
#pragma unroll
		for (int i = 0; i < 4; i += 2) {
			const float *at = state + (long)(row + i * 4) * dv + col + 8 * n;
			bool there = state && row + i * 4 < dk && col + 8 * n < dv;

			c[n][i] = there ? at[0] : 0;
			c[n][i + 1] = there ? at[1] : 0;
		}
}

template <int N>
static __device__ __forceinline__ void mma_state_put(float *state, const float (*c)[4], int row,
						     int col, int dk, int dv)
{
	row += threadIdx.x % 32 / 4;
	col += threadIdx.x % 4 * 2;
#pragma unroll
	for (int n = 0; n < N; n++)
#pragma unroll
		for (int i = 0; i < 4; i += 2)
			if (state && row + i * 4 < dk && col + 8 * n < dv)
				*(float2 *)(state + (long)(row + i * 4) * dv + col + 8 * n) =
					make_float2(c[n][i], c[n][i + 1]);
}

/*
 * Chunk @n of a row behind the one of element @at, as long as no bit of @n is set in the
 * number of that one: then it is one operation, which needs no number of the row.
 */
static __device__ __forceinline__ int chunk_at(int at, int n)
{
	return (at ^ (n % 8 * 8)) + n / 8 * 64;
}

/* The same, rounded, to a tile of W columns. */
template <int W, int N>
static __device__ __forceinline__ void mma_state_round(bf16 *s, const float (*c)[4], int row,
						       int col)
{
	int at = tile_at<W>(row + threadIdx.x % 32 / 4, col / 8) + threadIdx.x % 4 * 2;

#pragma unroll
	for (int n = 0; n < N; n++)
#pragma unroll
		for (int i = 0; i < 4; i += 2)
			pair_put(s + chunk_at(at, n) + i * 4 * W, { c[n][i], c[n][i + 1] });
}

/* Rows of c by f0 (of i = 0, 1) and f1. */
template <int N>
static __device__ __forceinline__ void mma_rows_scale(float (*c)[4], float f0, float f1)
{
#pragma unroll
	for (int n = 0; n < N; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			c[n][i] *= i < 2 ? f0 : f1;
}

/*
 * Addresses for ldmatrix: of row @r and chunk @c of a tile; and of a chunk @n behind that, as
 * chunk_at() has it, for rows are at multiples of 128 bytes.
 */
template <int W>
static __device__ __forceinline__ uint32_t address(const bf16 *x, int r, int c)
{
	return (uint32_t)__cvta_generic_to_shared(x + tile_at<W>(r, c));
}

static __device__ __forceinline__ uint32_t address_at(uint32_t at, int n)
{
	return (at ^ (n % 8 * 16)) + n / 8 * 128;
}

static __device__ __forceinline__ void matrix_get(uint32_t (&r)[4], uint32_t at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

static __device__ __forceinline__ void matrix_get_t(uint32_t (&r)[4], uint32_t at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

/* Left operand: 16 rows from @row on of a tile of W columns, columns 16 @k on. */
template <int W>
static __device__ __forceinline__ void mma_left(uint32_t (&a)[4], const bf16 *x, int row, int k)
{
	int lane = threadIdx.x % 32;

	matrix_get(a, address_at(address<W>(x, row + lane % 16, lane / 16), 2 * k));
}

/* The same of the transposed tile: columns @row on, rows 16 @k on. */
template <int W>
static __device__ __forceinline__ void mma_left_t(uint32_t (&a)[4], const bf16 *x, int row, int k)
{
	int lane = threadIdx.x % 32, r = lane % 8 + lane / 16 * 8;

	matrix_get_t(a, address<W>(x, r, row / 8 + lane / 8 % 2) + 32 * k * W);
}

/* c[16][8 N] += a y, y: rows 16 @k on, columns @col on, a multiple of 8 N, of a tile of W */
template <int W, int N>
static __device__ __forceinline__ void mma_nn(float (*c)[4], const uint32_t (&a)[4], const bf16 *y,
					      int k, int col)
{
	int lane = threadIdx.x % 32;
	uint32_t at = address<W>(y, lane % 16, col / 8 + lane / 16);

#pragma unroll
	for (int n = 0; n < N; n += 2) {
		uint32_t b[4];

		matrix_get_t(b, address_at(at, n) + 32 * k * W);
		mma(c[n], a, b[0], b[1]);
		mma(c[n + 1], a, b[2], b[3]);
	}
}

/* c[16][8 N] += a y^T, y: rows @row on, columns 16 @k on */
template <int W, int N>
static __device__ __forceinline__ void mma_nt(float (*c)[4], const uint32_t (&a)[4], const bf16 *y,
					      int row, int k)
{
	int lane = threadIdx.x % 32;
	uint32_t at = address<W>(y, row + lane % 8 + lane / 16 * 8, lane / 8 % 2);

#pragma unroll
	for (int n = 0; n < N; n += 2) {
		uint32_t b[4];

		matrix_get(b, address_at(at, 2 * k) + 16 * n * W);
		mma(c[n], a, b[0], b[1]);
		mma(c[n + 1], a, b[2], b[3]);
	}
}

/**
 * mma_load() - @ROWS rows of W columns to a tile; 0 from position @end and column @width on
 * @p: position 0: element (t, column) at p[t * row + column], read at multiples of 16 bytes
 * @t: position of the first row
 */
template <int W, int ROWS, int THREADS>
static __device__ __forceinline__ void mma_load(bf16 *s, const bf16 *p, int row, int t, int end,
						int width)
{
	constexpr int STEP = THREADS / (W / 8);		/* rows from one of a thread to its next */
	int r = threadIdx.x / (W / 8), c = threadIdx.x % (W / 8) * 8;
	int left = c < width ? end - t - r : 0;

	static_assert(THREADS % (W / 8) == 0 && STEP % 8 == 0, "a thread's chunks are permuted alike");
	if (ROWS % STEP && r >= ROWS)
		return;
	p += (long)(t + r) * row + c;
	s += tile_at<W>(r, c / 8);
#pragma unroll
	for (int j = 0; j < ROWS; j += STEP, p += (long)STEP * row)
		copy16(s + j * W, p, j < left);
}

/** mma_fetch() - the same, or with @AHEAD to the second cache alone */
template <int W, int ROWS, int THREADS, bool AHEAD>
static __device__ __forceinline__ void mma_fetch(bf16 *s, const bf16 *p, int row, int t, int end,
						 int width)
{
	enum { LINE = 64 };		/* elements of it */

	if (!AHEAD) {
		mma_load<W, ROWS, THREADS>(s, p, row, t, end, width);
		return;
	}
	mma_each<ROWS * W / LINE, THREADS>([&](unsigned int x) {
		int r = x / (W / LINE), c = x % (W / LINE) * LINE;

		if (t + r < end && c < width)
			asm volatile("prefetch.global.L2 [%0];" : : "l"(p + (long)(t + r) * row + c));
	});
}

#endif
