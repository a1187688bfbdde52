// SPDX-License-Identifier: MIT
/*
 * A matrix given by one factor per head, and transposed copies.
 */
#include "kernels_couple.h"
#include "rows.cuh"

enum {
	THREADS = 256,
	SIDE = 32,		/* of a tile of a transposed copy */
	TILE_ROWS = 8,
};

static __device__ __forceinline__ int couple_head(const struct couple &c, int f)
{
	return (long)f * c.heads / c.fdim;
}

static __global__ void __launch_bounds__(THREADS)
fill_kernel(struct couple c, real *w, const real *p)
{
	long at = (long)blockIdx.x * THREADS + threadIdx.x;
	/* neighbours in memory are neighbouring threads */
	bool by_f = c.f_stride == 1;
	int f = by_f ? at % c.fdim : at / c.l, j = by_f ? at / c.fdim : at % c.l;

	if (at >= (long)c.fdim * c.l)
		return;
	put(w + f * c.f_stride + j * c.l_stride,
	    j == f % c.l ? (float)c.factor * get(p + couple_head(c, f)) : 0);
}

void k_couple_fill(const struct couple *c, param_t *w, const param_t *p)
{
	long n = (long)c->fdim * c->l;

	fill_kernel<<<(n + THREADS - 1) / THREADS, THREADS, 0, cuda_stream()>>>(*c, real_of(w),
										 real_of(p));
	CUDA_LAUNCHED();
}

/* First element of a head. */
static __device__ int couple_first(const struct couple &c, int head)
{
	return ((long)head * c.fdim + c.heads - 1) / c.heads;
}

/* A block sums a head, in double. */
static __global__ void __launch_bounds__(THREADS)
grad_kernel(struct couple c, float *dp, const float *dw)
{
	__shared__ double part[32];
	int head = blockIdx.x, end = couple_first(c, head + 1);
	double sum = 0;

	for (int f = couple_first(c, head) + threadIdx.x; f < end; f += THREADS)
		sum += dw[f * c.f_stride + f % c.l * c.l_stride];
	sum = block_sum(sum, part);
	if (threadIdx.x == 0)
		dp[head] = c.factor * sum;
}

void k_couple_grad(const struct couple *c, grad_t *dp, const grad_t *dw)
{
	grad_kernel<<<c->heads, THREADS, 0, cuda_stream()>>>(*c, dp, dw);
	CUDA_LAUNCHED();
}

/* dst = src^T + beta dst, a tile through shared memory */
template <class T> static __global__ void __launch_bounds__(SIDE * TILE_ROWS)
transpose_kernel(T *dst, long ldd, const T *src, long lds, int rows, int cols, float beta)
{
	__shared__ T tile[SIDE][SIDE + 1];
	int i0 = blockIdx.y * SIDE, j0 = blockIdx.x * SIDE, x = threadIdx.x;

	for (int y = threadIdx.y; y < SIDE; y += TILE_ROWS)
		if (i0 + y < rows && j0 + x < cols)
			tile[y][x] = src[(i0 + y) * lds + j0 + x];
	__syncthreads();
	for (int y = threadIdx.y; y < SIDE; y += TILE_ROWS) {
		T *to = dst + (j0 + y) * ldd + i0 + x;

		if (j0 + y >= cols || i0 + x >= rows)
			continue;
		if constexpr (sizeof(T) == sizeof(float))
			*to = tile[x][y] + (beta == 0 ? 0 : beta * *to);
		else
			*to = tile[x][y];
	}
}

template <class T> static void transpose(T *dst, long ldd, const T *src, long lds, int rows,
					 int cols, float beta)
{
	dim3 grid(div_up(cols, SIDE), div_up(rows, SIDE)), block(SIDE, TILE_ROWS);

	transpose_kernel<T><<<grid, block, 0, cuda_stream()>>>(dst, ldd, src, lds, rows, cols,
							       beta);
	CUDA_LAUNCHED();
}

void k_transpose(param_t *dst, long ldd, const param_t *src, long lds, int rows, int cols)
{
	transpose<real>(real_of(dst), ldd, real_of(src), lds, rows, cols, 0);
}

void k_transpose_grad(grad_t *dst, long ldd, const grad_t *src, long lds, int rows, int cols,
		      double beta)
{
	transpose<float>(dst, ldd, src, lds, rows, cols, beta);
}
