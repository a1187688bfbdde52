// SPDX-License-Identifier: MIT
/*
 * Products of each expert's rows for float builds, which check: one thread an element.
 * moe_gemm.cu is the same for bf16, fast.
 */
#include "moe_gemm.cuh"

enum { THREADS = 256, TILE_ROWS = 8 };

/* sum over l < n of a[l lda] b[l ldb] */
static __device__ float dot(const float *a, long lda, const float *b, long ldb, int n)
{
	float sum = 0;

	for (long l = 0; l < n; l++)
		sum = fmaf(a[l * lda], b[l * ldb], sum);
	return sum;
}

static __device__ void finish(float *c, const struct gemm &g, float sum)
{
	*c = (float)g.alpha * sum + (g.beta != 0 ? (float)g.beta * *c : 0);
}

static __global__ void __launch_bounds__(THREADS) rows_kernel(struct grouped p)
{
	const struct gemm &g = p.g;
	int j = blockIdx.x * (THREADS / TILE_ROWS) + threadIdx.x / TILE_ROWS;
	int i = threadIdx.x % TILE_ROWS;
	struct group own;

	after_previous();
	own = group_at(p, blockIdx.y, TILE_ROWS);
	if (i < own.rows && j < g.n)
		finish((float *)g.c + (own.row + i) * g.ldc + j, g,
		       dot((const float *)g.a + (own.row + i) * g.lda, 1,
			   (const float *)g.b + own.e * g.sb + j * (g.tb ? g.ldb : 1),
			   g.tb ? 1 : g.ldb, g.k));
}

static __global__ void __launch_bounds__(THREADS) grad_kernel(struct grouped p)
{
	const struct gemm &g = p.g;
	int j = blockIdx.x * THREADS + threadIdx.x, i = blockIdx.y, e = blockIdx.z;
	long row = p.first[e];

	if (j < g.n)
		finish((float *)g.c + e * g.sc + i * g.ldc + j, g,
		       dot((const float *)g.a + row * g.lda + i, g.lda,
			   (const float *)g.b + row * g.ldb + j, g.ldb, p.first[e + 1] - row));
}

void k_moe_gemm(const struct gemm *g, const struct moe *m)
{
	const struct grouped p = { *g, m->first, m->experts };
	const dim3 grid(div_up(g->n, THREADS / TILE_ROWS),
			group_tiles(m->n * m->k, m->experts, TILE_ROWS));

	launch(rows_kernel, grid, THREADS, 0, p);
}

void k_moe_gemm_grad(const struct gemm *g, const struct moe *m)
{
	grad_kernel<<<dim3(div_up(g->n, THREADS), g->m, m->experts), THREADS, 0, cuda_stream()>>>(
		{ *g, m->first, m->experts });
	CUDA_LAUNCHED();
}
