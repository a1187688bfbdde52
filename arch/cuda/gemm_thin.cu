// SPDX-License-Identifier: MIT
/*
 * Products of a few rows, as decode has them, and epilogues as passes of their own.
 *
 * A warp makes one column of the result for all rows: it reads a row of the weights
 * once, and the rows of a from the cache.
 */
#include "act.cuh"
#include "gemm.cuh"
#include "rows.cuh"

enum {
	THIN_ROWS = 8,		/* more are cheaper through tensor cores */
	THREADS = 256,
};

/* One element behind the product: bias, activation, and where they go. */
struct finish {
	enum gemm_epilogue ep;
	const bf16 *bias;
	bf16 *aux;
	long ldaux;

	__device__ __forceinline__ float operator()(float x, long i, int j) const
	{
		if (bias)
			x += __bfloat162float(bias[j]);
		if (ep == GEMM_BIAS_GELU) {
			bf16 pre = __float2bfloat16(x);

			aux[i * ldaux + j] = pre;
			x = gelu(__bfloat162float(pre));
		} else if (ep == GEMM_DGELU) {
			x *= gelu_grad(__bfloat162float(aux[i * ldaux + j]));
		}
		return x;
	}
};

static struct finish finish_of(const struct gemm *g)
{
	return { g->ep, bf16_of(g->bias), bf16_of(g->aux), g->ldaux };
}

static __device__ __forceinline__ void put(bf16 *p, float x)
{
	*p = __float2bfloat16(x);
}

static __device__ __forceinline__ void put(float *p, float x)
{
	*p = x;
}

static __device__ __forceinline__ float get(const bf16 *p)
{
	return __bfloat162float(*p);
}

static __device__ __forceinline__ float get(const float *p)
{
	return *p;
}

template <int W, class OUT> static __global__ void __launch_bounds__(THREADS)
thin_kernel(struct gemm g, struct finish f)
{
	int j = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
	const bf16 *a = (const bf16 *)g.a, *b = (const bf16 *)g.b + (long)j * g.ldb;
	float sum[THIN_ROWS] = {}, x[W], y[W];

	if (j >= g.n)
		return;
	for (int l = lane * W; l < g.k; l += 32 * W) {
		row_load<W>(y, b + l);
#pragma unroll
		for (int i = 0; i < THIN_ROWS; i++) {
			if (i >= g.m)
				break;
			row_load<W>(x, a + i * g.lda + l);
#pragma unroll
			for (int e = 0; e < W; e++)
				sum[i] += x[e] * y[e];
		}
	}
#pragma unroll
	for (int i = 0; i < THIN_ROWS; i++) {
		float total = warp_sum(sum[i]);
		OUT *c = (OUT *)g.c + i * g.ldc + j;

		if (i >= g.m || lane)
			continue;
		total *= (float)g.alpha;
		if (g.beta != 0)
			total += (float)g.beta * get(c);
		put(c, f(total, i, j));
	}
}

template <class OUT> static void thin(const struct gemm *g)
{
	int grid = div_up(g->n, THREADS / 32);
	bool wide = row_wide(g->a, g->lda) && row_wide(g->b, g->ldb) && g->k % WIDE == 0;

	if (wide)
		thin_kernel<WIDE, OUT><<<grid, THREADS, 0, cuda_stream()>>>(*g, finish_of(g));
	else
		thin_kernel<1, OUT><<<grid, THREADS, 0, cuda_stream()>>>(*g, finish_of(g));
	CUDA_LAUNCHED();
}

bool gemm_thin(const struct gemm *g, bool wide)
{
	if (g->m > THIN_ROWS || g->ta || !g->tb || g->batch > 1)
		return false;
	if (wide)
		thin<float>(g);
	else
		thin<bf16>(g);
	return true;
}

static __global__ void __launch_bounds__(THREADS) epilogue_kernel(bf16 *c, long ldc, int m, int n,
								  struct finish f)
{
	size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
	long i = at / n;
	int j = at % n;

	if (i < m)
		put(c + i * ldc + j, f(get(c + i * ldc + j), i, j));
}

void gemm_epilogue(const struct gemm *g)
{
	size_t n = (size_t)g->m * g->n;

	epilogue_kernel<<<(n + THREADS - 1) / THREADS, THREADS, 0, cuda_stream()>>>(
		(bf16 *)g->c, g->ldc, g->m, g->n, finish_of(g));
	CUDA_LAUNCHED();
}
