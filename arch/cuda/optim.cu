// SPDX-License-Identifier: MIT
/*
 * The optimizer's kernels up to the update: mean loss, global norm, decision.
 *
 * Huang et al. 2025, arXiv 2501.06842 (SPAM), with a spike detector on the global norm.
 * Partial sums have a fixed size, and each thread of a block a fixed set of elements.
 * Scalars are computed in double by one thread, and rounded once.
 */
#include <limits.h>

#include "optim.cuh"

enum { THREADS = 1024 };

static __global__ void loss_tree_kernel(double *dst, const double *x, int n)
{
	*dst = loss_tree(x, n);
}

void k_loss_tree(double *dst, const double *x, int n)
{
	loss_tree_kernel<<<1, 1, 0, cuda_stream()>>>(dst, x, n);
	CUDA_LAUNCHED();
}

/* ---- norm -------------------------------------------------------------------- */

/* Elements [i, i + n) of a chunk, n <= GROUP: their squares, and the first bad one. */
static __device__ __forceinline__ double squares(const struct adam_buffers &x, size_t i, int n,
						 int at, float clip, int *bad)
{
	double sum = 0;
	float g[GROUP], v[GROUP];

	if (n == GROUP && i % GROUP == 0) {
		row_load<GROUP>(g, x.g + i);
		if (clip > 0)
			row_load<GROUP>(v, x.v + i);
	} else {
		for (int e = 0; e < n; e++) {
			g[e] = x.g[i + e];
			v[e] = clip > 0 ? x.v[i + e] : 0;
		}
	}
#pragma unroll
	for (int e = 0; e < GROUP; e++) {
		double s;

		if (e >= n)
			break;
		if (!isfinite(g[e]))
			*bad = min(*bad, at + e);
		s = clip > 0 ? clipped(g[e], v[e], clip) : g[e];
		sum += s * s;
	}
	return sum;
}

static __global__ void __launch_bounds__(THREADS)
norm_kernel(double *partial, int32_t *bad, struct adam_buffers x, struct optim_span s,
	    struct adam_hyper hp, const struct adam_state *st)
{
	__shared__ double part[32];
	__shared__ float clip;
	__shared__ int first;
	size_t from = s.offset + (size_t)blockIdx.x * OPTIM_CHUNK;
	size_t end = MIN(from + OPTIM_CHUNK, s.offset + s.n), c = from / OPTIM_CHUNK;
	double sum = 0;
	int least = INT_MAX;

	if (threadIdx.x == 0) {
		clip = clip_of(&hp, st);
		first = INT_MAX;
	}
	__syncthreads();
	each_piece(s, from, end, [&](const struct optim_range *, size_t at, size_t to) {
		for (size_t i = at + threadIdx.x * GROUP; i < to; i += THREADS * GROUP)
			sum += squares(x, i - s.offset, MIN(to - i, (size_t)GROUP),
				       (int)(i - from), clip, &least);
	});
	if (least != INT_MAX)
		atomicMin(&first, least);	/* of integers: any order gives the same */
	sum = block_sum(sum, part);
	if (threadIdx.x == 0) {
		partial[c] = hp.inv_accum * hp.inv_accum * sum;
		bad[c] = first == INT_MAX ? -1 : first;
	}
}

void k_adam_norm(double *partial, int32_t *bad, const struct adam_buffers *x,
		 const struct optim_span *s, const struct adam_hyper *hp,
		 const struct adam_state *st)
{
	unsigned int chunks = (s->n + OPTIM_CHUNK - 1) / OPTIM_CHUNK;

	if (!chunks)
		return;
	norm_kernel<<<chunks, THREADS, 0, cuda_stream()>>>(partial, bad, *x, *s, *hp, st);
	CUDA_LAUNCHED();
}

/* ---- decision ---------------------------------------------------------------- */

static __global__ void __launch_bounds__(THREADS)
guard_kernel(struct optim_state *st, const double *partial, size_t nr, const double *loss)
{
	__shared__ double part[32];
	double sum = 0;

	for (size_t i = threadIdx.x; i < nr; i += THREADS)
		sum += partial[i];
	sum = block_sum(sum, part);
	if (threadIdx.x)
		return;
	guard(st, sum, *loss);
}

void k_optim_guard(struct optim_state *st, const double *partial, size_t nr, const double *loss)
{
	guard_kernel<<<1, THREADS, 0, cuda_stream()>>>(st, partial, nr, loss);
	CUDA_LAUNCHED();
}

static __global__ void decide_kernel(struct adam_state *st, const double *lr,
				     struct adam_hyper hp)
{
	decide(st, *lr, &hp);
}

void k_adam_decide(struct adam_state *st, const double *lr, const struct adam_hyper *hp)
{
	decide_kernel<<<1, 1, 0, cuda_stream()>>>(st, lr, *hp);
	CUDA_LAUNCHED();
}
