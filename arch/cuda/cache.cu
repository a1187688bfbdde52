// SPDX-License-Identifier: MIT
/*
 * Rows of decode state: written one position at a time, or from a forward.
 */
#include "kernels.h"
#include "rows.cuh"

enum { THREADS = 128 };

/* Sixteen bytes at a time where both rows begin at a multiple of them. */
static __device__ void row_copy(real *dst, const real *src, int width)
{
	constexpr int SIXTEEN = 16 / sizeof(real);
	bool wide = ((uintptr_t)dst | (uintptr_t)src) % 16 == 0 && width % SIXTEEN == 0;

	for (int j = threadIdx.x; wide && j < width / SIXTEEN; j += THREADS)
		((uint4 *)dst)[j] = ((const uint4 *)src)[j];
	for (int j = threadIdx.x; !wide && j < width; j += THREADS)
		dst[j] = src[j];
}

/* Row @pos of sequence @i. */
static __device__ real *cache_row(const struct cache_rows &c, int i, int pos)
{
	return real_of(c.base) + i * c.seq + (c.slots ? pos % c.slots : pos) * c.row;
}

static __global__ void __launch_bounds__(THREADS)
put_kernel(struct cache_rows c, const real *src, long ld, const int32_t *pos)
{
	int i = blockIdx.x;

	let_next();
	after_previous();
	row_copy(cache_row(c, i, pos[i]), src + i * ld, c.width);
}

void k_cache_put(const struct cache_rows *c, const act_t *src, long ld, const int32_t *pos, int b)
{
	launch(put_kernel, b, THREADS, 0, *c, real_of(src), ld, pos);
}

/* Rows that a later one would overwrite in a ring are left out. */
static __global__ void __launch_bounds__(THREADS)
fill_kernel(struct cache_rows c, const real *src, long ld, const int32_t *len, int t)
{
	int i = blockIdx.y, u = blockIdx.x;

	if (u < len[i] && (!c.slots || u >= len[i] - c.slots))
		row_copy(cache_row(c, i, u), src + ((long)i * t + u) * ld, c.width);
}

void k_cache_fill(const struct cache_rows *c, const act_t *src, long ld, const int32_t *len, int b,
		  int t)
{
	fill_kernel<<<dim3(t, b), THREADS, 0, cuda_stream()>>>(*c, real_of(src), ld, len, t);
	CUDA_LAUNCHED();
}

static __global__ void __launch_bounds__(THREADS)
last_kernel(real *dst, const real *src, const int32_t *len, int t, int c)
{
	long i = blockIdx.x;

	row_copy(dst + i * c, src + (i * t + len[i] - 1) * c, c);
}

void k_last_rows(act_t *dst, const act_t *src, const int32_t *len, int b, int t, int c)
{
	last_kernel<<<b, THREADS, 0, cuda_stream()>>>(real_of(dst), real_of(src), len, t, c);
	CUDA_LAUNCHED();
}
