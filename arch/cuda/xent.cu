// SPDX-License-Identifier: MIT
/*
 * Cross-entropy. A block owns a row: each thread runs an online softmax over its part,
 * the parts are joined, and the gradient is written over the logits. In between these
 * wait in shared memory, where a row fits, each thread's own.
 */
#include "kernels.h"
#include "rows.cuh"

enum {
	THREADS = 512,
	MEAN_THREADS = 1024,
	KEEP_BYTES = 112 << 10,	/* of a row in shared memory: two blocks fit */
};

/* Maximum and sum of exponentials relative to it. */
struct online {
	float max, sum;
};

static __device__ __forceinline__ struct online join(struct online a, struct online b)
{
	float max = fmaxf(a.max, b.max);

	if (max == -INFINITY)	/* both are empty, or NaN shows in the sums */
		return { max, a.sum + b.sum };
	return { max, a.sum * exp2_fast((a.max - max) * LOG2E) +
		      b.sum * exp2_fast((b.max - max) * LOG2E) };
}

static __device__ struct online block_join(struct online x, struct online *part)
{
	for (int step = 16; step; step /= 2)
		x = join(x, { __shfl_xor_sync(~0u, x.max, step),
			      __shfl_xor_sync(~0u, x.sum, step) });
	if (threadIdx.x % 32 == 0)
		part[threadIdx.x / 32] = x;
	__syncthreads();
	x = part[0];
	for (int i = 1; i < THREADS / 32; i++)
		x = join(x, part[i]);
	return x;
}

/* Columns [j, j + W) of a row, minus infinity from @vocab on. */
template <int W> static __device__ __forceinline__ void logits_at(float (&x)[W], const real *row,
								 int j, int vocab)
{
	row_load<W>(x, row + j);
#pragma unroll
	for (int e = 0; e < W; e++)
		x[e] = j + e < vocab ? x[e] : -INFINITY;
}

/* @kept: NULL, or where the columns go on the way */
template <int W> static __device__ struct online row_online(const real *row, real *kept, int vocab)
{
	struct online all = { -INFINITY, 0 };
	float x[W];

#pragma unroll 2
	for (int j = threadIdx.x * W; j < vocab; j += THREADS * W) {
		float max = -INFINITY, sum = 0;

		logits_at<W>(x, row, j, vocab);
		if (kept)
			row_store<W>(kept + j, x);
#pragma unroll
		for (int e = 0; e < W; e++)
			max = fmaxf(max, x[e]);
		if (max > all.max) {
			all.sum *= exp2_fast((all.max - max) * LOG2E);
			all.max = max;
		}
#pragma unroll
		for (int e = 0; e < W; e++)
			sum += exp2_fast((x[e] - all.max) * LOG2E);
		all.sum += sum;
	}
	return all;
}

template <int W> static __global__ void __launch_bounds__(THREADS)
xent_kernel(float *loss, real *logits, const int32_t *target, int v, int vocab,
	    const int32_t *scored, bool grad, bool keep)
{
	extern __shared__ __align__(16) real kept[];
	__shared__ struct online part[THREADS / 32];
	long i = blockIdx.x;
	real *row = logits + i * v;
	int aim = target[i];
	float factor = 1.0f / *scored, each = 0, at = aim < 0 ? 0 : get(row + aim);
	struct online all = { 0, 1 };
	float x[W];

	if (aim >= 0) {
		all = block_join(row_online<W>(row, keep ? kept : NULL, vocab), part);
		each = factor / all.sum;
	}
	if (threadIdx.x == 0)
		loss[i] = aim < 0 ? 0 : log((double)all.sum) + all.max - at;
	if (!grad)
		return;
	for (int j = threadIdx.x * W; j < v; j += THREADS * W) {
		if (aim >= 0 && j < vocab)
			logits_at<W>(x, keep ? kept : row, j, vocab);
#pragma unroll
		for (int e = 0; e < W; e++) {
			x[e] = j + e < vocab && aim >= 0 ?
			       each * exp2_fast((x[e] - all.max) * LOG2E) : 0;
			if (j + e == aim)
				x[e] -= factor;
		}
		row_store<W>(row + j, x);
	}
}

template <int W> static void xent(float *loss, real *logits, const int32_t *target, int n, int v,
				  int vocab, const int32_t *scored, bool grad)
{
	size_t bytes = grad && v * sizeof(real) <= KEEP_BYTES ? v * sizeof(real) : 0;

	CUDA(cudaFuncSetAttribute(xent_kernel<W>, cudaFuncAttributeMaxDynamicSharedMemorySize,
				  KEEP_BYTES));
	xent_kernel<W><<<n, THREADS, bytes, cuda_stream()>>>(loss, logits, target, v, vocab,
							     scored, grad, bytes > 0);
	CUDA_LAUNCHED();
}

void k_xent(acc_t *loss, act_t *logits, const int32_t *target, int n, int v, int vocab,
	    const int32_t *scored, bool grad)
{
	if (row_wide(logits, v))
		xent<WIDE>(loss, real_of(logits), target, n, v, vocab, scored, grad);
	else
		xent<1>(loss, real_of(logits), target, n, v, vocab, scored, grad);
}

static __global__ void mask_kernel(float *logits, int n, int v, int vocab)
{
	int at = blockIdx.x * blockDim.x + threadIdx.x, pad = v - vocab;

	let_next();
	after_previous();
	if (at < n * pad)
		logits[(long)(at / pad) * v + vocab + at % pad] = -INFINITY;
}

void k_mask_padding(acc_t *logits, int n, int v, int vocab)
{
	if (v == vocab)
		return;
	launch(mask_kernel, div_up(n * (v - vocab), 128), 128, 0, logits, n, v, vocab);
}

static __global__ void __launch_bounds__(MEAN_THREADS)
mean_kernel(double *dst, const float *x, int n, const int32_t *scored)
{
	__shared__ double part[32];
	double sum = 0;

	for (int i = threadIdx.x; i < n; i += MEAN_THREADS)
		sum += x[i];
	sum = block_sum(sum, part);
	if (threadIdx.x == 0)
		*dst = sum / *scored;
}

void k_loss_mean(double *dst, const acc_t *x, int n, const int32_t *scored)
{
	mean_kernel<<<1, MEAN_THREADS, 0, cuda_stream()>>>(dst, x, n, scored);
	CUDA_LAUNCHED();
}
