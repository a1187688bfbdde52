// SPDX-License-Identifier: MIT
/*
 * Embedding.
 *
 * Its gradient: rows sorted by token are cut in segments of fixed length. A run of one
 * token inside a segment is added to its row of dwte by that segment alone. What lies
 * of a longer run in a segment is summed apart, and a second kernel adds up the parts of
 * each such run in the order of the segments: no atomics, one order.
 */
#include "kernels.h"
#include "rows.cuh"

enum {
	SEGMENT = 32,		/* sorted rows of one block */
	THREADS = 128,
};

template <int W> static __global__ void __launch_bounds__(THREADS)
embed_fwd_kernel(real *x, const int32_t *tok, const int32_t *pos, const real *wte,
		 const real *wpe, int t, int c)
{
	long row = blockIdx.x;
	int i = row / t, at = row % t + (pos ? pos[i] : 0);
	float e[W], p[W];

	for (int j = threadIdx.x * W; j < c; j += THREADS * W) {
		row_load<W>(e, wte + (long)tok[row] * c + j);
		if (wpe) {
			row_load<W>(p, wpe + (long)at * c + j);
#pragma unroll
			for (int k = 0; k < W; k++)
				e[k] += p[k];
		}
		row_store<W>(x + row * c + j, e);
	}
}

void k_embed_fwd(act_t *x, const int32_t *tok, const int32_t *pos, const param_t *wte,
		 const param_t *wpe, int b, int t, int c)
{
	if (row_wide(x, c) && row_wide(wte, c) && row_wide(wpe, c))
		embed_fwd_kernel<WIDE><<<b * t, THREADS, 0, cuda_stream()>>>(
			real_of(x), tok, pos, real_of(wte), real_of(wpe), t, c);
	else
		embed_fwd_kernel<1><<<b * t, THREADS, 0, cuda_stream()>>>(
			real_of(x), tok, pos, real_of(wte), real_of(wpe), t, c);
	CUDA_LAUNCHED();
}

/* For each segment: the part of a run from before it, and of one that goes on behind it. */
size_t k_embed_scratch(int b, int t, int c)
{
	return (size_t)div_up(b * t, SEGMENT) * 2 * c * sizeof(float);
}

/* dst[W] = sum, or dst += sum */
template <int W> static __device__ void give(float *dst, float (&sum)[W], bool add)
{
	float old[W] = {};

	if (add)
		row_load<W>(old, dst);
#pragma unroll
	for (int e = 0; e < W; e++)
		old[e] += sum[e];
	row_store<W>(dst, old);
}

template <int W> static __global__ void __launch_bounds__(THREADS)
embed_segment_kernel(float *dwte, float *part, const real *dx, const int32_t *tok,
		     const int32_t *order, int n, int c)
{
	__shared__ int32_t rows[SEGMENT], tokens[SEGMENT + 2];
	int at = blockIdx.x * SEGMENT, len = min(SEGMENT, n - at);
	int j = (blockIdx.y * THREADS + threadIdx.x) * W;
	float *head = part + (long)blockIdx.x * 2 * c, *tail = head + c;

	/* tokens[1 + k] is that of row k; -1 before the first and behind the last of all */
	if (threadIdx.x < SEGMENT + 2) {
		int k = at + (int)threadIdx.x - 1;

		tokens[threadIdx.x] = k < 0 || k >= n ? -1 : tok[order[k]];
	}
	if (threadIdx.x < len)
		rows[threadIdx.x] = order[at + threadIdx.x];
	__syncthreads();
	if (j >= c)
		return;
	for (int k = 0; k < len;) {
		int32_t token = tokens[1 + k];
		bool before = k == 0 && tokens[0] == token;
		float sum[W] = {}, x[W];

		for (; k < len && tokens[1 + k] == token; k++) {
			row_load<W>(x, dx + (long)rows[k] * c + j);
#pragma unroll
			for (int e = 0; e < W; e++)
				sum[e] += x[e];
		}
		if (before)
			give<W>(head + j, sum, false);
		else if (k == len && tokens[1 + k] == token)
			give<W>(tail + j, sum, false);
		else
			give<W>(dwte + (long)token * c + j, sum, true);
	}
}

/* The runs that begin in a segment and go on behind it. */
template <int W> static __global__ void __launch_bounds__(THREADS)
embed_run_kernel(float *dwte, const float *part, const int32_t *tok, const int32_t *order, int n,
		 int c)
{
	int at = blockIdx.x * SEGMENT, next = at + SEGMENT;
	int j = (blockIdx.y * THREADS + threadIdx.x) * W;
	const float *from = part + (long)blockIdx.x * 2 * c;
	float sum[W], x[W];
	int32_t token;

	if (next >= n || j >= c)
		return;
	token = tok[order[next - 1]];
	if (tok[order[next]] != token)
		return;
	if (at && tok[order[at - 1]] == token && tok[order[at]] == token)
		return;		/* it began before */
	row_load<W>(sum, from + c + j);
	for (; next < n && tok[order[next]] == token; next += SEGMENT) {
		from += 2 * c;
		row_load<W>(x, from + j);
#pragma unroll
		for (int e = 0; e < W; e++)
			sum[e] += x[e];
		if (tok[order[min(next + SEGMENT, n) - 1]] != token)
			break;
	}
	give<W>(dwte + (long)token * c + j, sum, true);
}

template <int W> static __global__ void __launch_bounds__(THREADS)
embed_position_kernel(float *dwpe, const real *dx, int b, int t, int c)
{
	int at = blockIdx.x;

	for (int j = threadIdx.x * W; j < c; j += THREADS * W) {
		float sum[W] = {}, x[W];

#pragma unroll 4
		for (int i = 0; i < (at < t ? b : 0); i++) {
			row_load<W>(x, dx + ((long)i * t + at) * c + j);
#pragma unroll
			for (int e = 0; e < W; e++)
				sum[e] += x[e];
		}
		row_store<W>(dwpe + (long)at * c + j, sum);
	}
}

template <int W> static void embed_bwd(float *dwte, float *dwpe, const real *dx,
				       const int32_t *tok, const int32_t *order, int b, int t,
				       int t_max, int c, float *part)
{
	int n = b * t;
	dim3 grid(div_up(n, SEGMENT), div_up(c, THREADS * W));

	embed_segment_kernel<W><<<grid, THREADS, 0, cuda_stream()>>>(dwte, part, dx, tok, order, n,
								     c);
	CUDA_LAUNCHED();
	embed_run_kernel<W><<<grid, THREADS, 0, cuda_stream()>>>(dwte, part, tok, order, n, c);
	CUDA_LAUNCHED();
	if (!dwpe)
		return;
	embed_position_kernel<W><<<t_max, THREADS, 0, cuda_stream()>>>(dwpe, dx, b, t, c);
	CUDA_LAUNCHED();
}

void k_embed_bwd(grad_t *dwte, grad_t *dwpe, const act_t *dx, const int32_t *tok,
		 const int32_t *order, int b, int t, int t_max, int c, void *scratch)
{
	if (row_wide(dwte, c) && row_wide(dwpe, c) && row_wide(dx, c) && row_wide(scratch, c))
		embed_bwd<WIDE>(dwte, dwpe, real_of(dx), tok, order, b, t, t_max, c,
				(float *)scratch);
	else
		embed_bwd<1>(dwte, dwpe, real_of(dx), tok, order, b, t, t_max, c,
			     (float *)scratch);
}
