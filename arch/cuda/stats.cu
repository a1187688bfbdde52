// SPDX-License-Identifier: MIT
/*
 * Statistics for the log: of a tensor's elements, and the entropy of attention rows,
 * whose scores are recomputed tile by tile.
 */
#include "kernels_stats.h"
#include "rows.cuh"
#include "score.cuh"

enum {
	THREADS = 256,
	PARTS = 128,		/* blocks; each a fixed set of elements */
};

/* Sums and extremes of some elements. */
struct part {
	double sum, squares;
	float min, max;
};

static __device__ void part_add(struct part &a, const struct part &b)
{
	a.sum += b.sum;
	a.squares += b.squares;
	/* comparisons that keep a NaN out, as on the cpu; it shows in the sums */
	a.min = b.min < a.min ? b.min : a.min;
	a.max = b.max > a.max ? b.max : a.max;
}

template <class T> static __global__ void __launch_bounds__(THREADS)
parts_kernel(struct part *parts, const T *x, size_t n)
{
	__shared__ struct part all[THREADS];
	struct part a = { 0, 0, INFINITY, -INFINITY };

	for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += PARTS * THREADS) {
		float v = get(x + i);

		part_add(a, { v, (double)v * v, v, v });
	}
	all[threadIdx.x] = a;
	__syncthreads();
	for (int step = THREADS / 2; step; step /= 2) {
		if (threadIdx.x < step)
			part_add(all[threadIdx.x], all[threadIdx.x + step]);
		__syncthreads();
	}
	if (threadIdx.x == 0)
		parts[blockIdx.x] = all[0];
}

static __global__ void stats_kernel(struct stats *dst, const struct part *parts, size_t n)
{
	struct part a = parts[0];

	for (int i = 1; i < PARTS; i++)
		part_add(a, parts[i]);
	dst->mean = a.sum / n;
	dst->rms = sqrt(a.squares / n);
	dst->min = a.min;
	dst->max = a.max;
}

template <class T> static void stats(struct stats *dst, const T *x, size_t n)
{
	struct part *parts = (struct part *)workspace_part(PARTS * sizeof(*parts));

	parts_kernel<T><<<PARTS, THREADS, 0, cuda_stream()>>>(parts, x, n);
	CUDA_LAUNCHED();
	stats_kernel<<<1, 1, 0, cuda_stream()>>>(dst, parts, n);
	CUDA_LAUNCHED();
}

void k_stats(struct stats *dst, const act_t *x, size_t n)
{
	stats(dst, real_of(x), n);
}

void k_stats_acc(struct stats *dst, const acc_t *x, size_t n)
{
	stats(dst, x, n);
}

/* Entropy of TILE rows of one head: -sum P log P. */
static __global__ void __launch_bounds__(TILE_THREADS)
entropy_kernel(struct score_run r, float *entropy)
{
	__shared__ __align__(16) struct score_smem mem;
	int t0 = (gridDim.x - 1 - blockIdx.x) * TILE;
	int i = blockIdx.y / r.a.heads, h = blockIdx.y % r.a.heads;
	float sum[2] = {};

	for (int u0 = 0; u0 <= t0; u0 += TILE)
		each_score_tile(mem, r, i, h, h + 1, t0, u0, [&](int, const tile_acc &s) {
#pragma unroll
			for (int c = 0; c < TILE / 8; c++)
#pragma unroll
				for (int k = 0; k < 4; k++)
					if (u0 + acc_col(c, k) <= t0 + acc_row(k) &&
					    s[c][k] > -INFINITY)
						sum[k / 2] -= exp2_fast(s[c][k]) * s[c][k];
		});
	for (int half = 0; half < 2; half++) {
		int t = t0 + acc_row(2 * half);
		float all = row_sum(sum[half]);

		if (t < r.a.t && threadIdx.x % 4 == 0)
			entropy[attn_stat(r.a, i, t, h)] = all * LN2;
	}
}

void k_attn_entropy(const struct attn *a, acc_t *entropy)
{
	dim3 grid(div_up(a->t, TILE), a->b * a->heads);

	entropy_kernel<<<grid, TILE_THREADS, 0, cuda_stream()>>>(score_run_of(a), entropy);
	CUDA_LAUNCHED();
}
