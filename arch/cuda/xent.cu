// SPDX-License-Identifier: MIT
/*
 * Cross-entropy. A block owns a row: each thread runs an online softmax over its part,
 * the parts are joined, and the gradient is written over the logits. Where a row fits
 * shared memory it comes there asynchronously, nearly all of it under way at once, and
 * waits there for the gradient; a thread reads what it copied itself.
 */
#include "kernels.h"
#include "rows.cuh"

enum {
	THREADS = 512,
	MEAN_THREADS = 1024,
	ARGMAX_ROWS = 8,	/* of a block */
	KEEP_BYTES = 112 << 10,	/* of a row in shared memory: two blocks fit */
	STATIC_BYTES = 1 << 10,	/* more than the block has of it beside */
	PIECE = 3,		/* turns of a thread that are a group of copies */
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
	if (j + W <= vocab)
		return;
#pragma unroll
	for (int e = 0; e < W; e++)
		x[e] = j + e < vocab ? x[e] : -INFINITY;
}

/* The same, to @all. */
template <int W> static __device__ __forceinline__ void add(struct online &all, const real *row,
							   int j, int vocab)
{
	float x[W], max = -INFINITY, sum = 0, low;

	logits_at<W>(x, row, j, vocab);
#pragma unroll
	for (int e = 0; e < W; e++)
		max = fmaxf(max, x[e]);
	if (max > all.max) {
		all.sum *= exp2_fast((all.max - max) * LOG2E);
		all.max = max;
	}
	low = all.max * LOG2E;
#pragma unroll
	for (int e = 0; e < W; e++)
		sum += exp2_fast(fmaf(x[e], LOG2E, -low));
	all.sum += sum;
}

template <int W> static __device__ struct online row_online(const real *row, int vocab)
{
	struct online all = { -INFINITY, 0 };

#pragma unroll 2
	for (int j = threadIdx.x * W; j < vocab; j += THREADS * W)
		add<W>(all, row, j, vocab);
	return all;
}

/* f(j) for this thread's columns j of piece @n. */
template <class F> static __device__ __forceinline__ void each_of_piece(int n, int vocab, F f)
{
#pragma unroll
	for (int k = 0; k < PIECE; k++) {
		int j = ((n * PIECE + k) * THREADS + threadIdx.x) * WIDE;

		if (j < vocab)
			f(j);
	}
}

/* Until only the newest @left groups of copies can be under way. */
static __device__ __forceinline__ void copies_before(int left)
{
	if (left >= 3)
		copy_wait<3>();
	else if (left == 2)
		copy_wait<2>();
	else if (left == 1)
		copy_wait<1>();
	else
		copy_wait<0>();
}

/* The same by way of @kept. */
static __device__ struct online row_online_kept(real *kept, const real *row, int vocab)
{
	int pieces = div_up(vocab, PIECE * THREADS * WIDE);
	struct online all = { -INFINITY, 0 };

	for (int n = 0; n < pieces; n++) {
		each_of_piece(n, vocab, [&](int j) {
			for (int at = 0; at < WIDE; at += 16 / sizeof(real))
				copy16(kept + j + at, row + j + at);
		});
		copy_commit();
	}
	for (int n = 0; n < pieces; n++) {
		copies_before(pieces - 1 - n);
		each_of_piece(n, vocab, [&](int j) { add<WIDE>(all, kept, j, vocab); });
	}
	return all;
}

/* The gradient of columns [j, j + W): softmax - 1 at the target, each times @factor. */
template <int W>
static __device__ __forceinline__ void gradient(float (&x)[W], const struct online &all,
						float factor, int aim, int j)
{
	float each = factor / all.sum, low = all.max * LOG2E;

#pragma unroll
	for (int e = 0; e < W; e++)
		x[e] = each * exp2_fast(fmaf(x[e], LOG2E, -low));
	if (aim < j || aim >= j + W)
		return;
#pragma unroll
	for (int e = 0; e < W; e++)
		x[e] -= j + e == aim ? factor : 0;
}

/* @keep: the row fits shared memory, W is WIDE */
template <int W> static __global__ void __launch_bounds__(THREADS, 2)
xent_kernel(float *loss, real *logits, const int32_t *target, int v, int vocab,
	    const int32_t *scored, bool grad, bool keep)
{
	extern __shared__ __align__(16) real kept[];
	__shared__ struct online part[THREADS / 32];
	long i = blockIdx.x;
	real *row = logits + i * v;
	int aim = target[i];
	float factor = 1.0f / *scored, at = aim < 0 ? 0 : get(row + aim);
	struct online all = { 0, 1 };

	if (aim >= 0)
		all = block_join(keep ? row_online_kept(kept, row, vocab) :
					row_online<W>(row, vocab), part);
	if (threadIdx.x == 0)
		loss[i] = aim < 0 ? 0 : log((double)all.sum) + all.max - at;
	if (!grad)
		return;
#pragma unroll 4
	for (int j = threadIdx.x * W; j < v; j += THREADS * W) {
		float x[W] = {};

		if (aim >= 0 && j < vocab) {
			logits_at<W>(x, keep ? kept : row, j, vocab);
			gradient<W>(x, all, factor, aim, j);
		}
		row_store<W>(row + j, x);
	}
}

template <int W> static void xent(float *loss, real *logits, const int32_t *target, int n, int v,
				  int vocab, const int32_t *scored, bool grad)
{
	size_t room = MIN((size_t)KEEP_BYTES, cuda_shared_max() - STATIC_BYTES), bytes = 0;

	if (W == WIDE && v * sizeof(real) <= room) {
		bytes = v * sizeof(real);
		shared_room(xent_kernel<W>, room);
	}
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

/* A warp owns a row; lanes that saw nothing stand for column 0. */
static __global__ void argmax_kernel(int32_t *best, const float *x, int n, int v, int vocab)
{
	int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32, at = 0;
	float max = -INFINITY;

	if (row >= n)
		return;
	for (int j = lane; j < vocab; j += 32)
		if (x[(long)row * v + j] > max) {
			max = x[(long)row * v + j];
			at = j;
		}
	for (int step = 16; step; step /= 2) {
		float other = __shfl_xor_sync(~0u, max, step);
		int from = __shfl_xor_sync(~0u, at, step);

		if (other > max || (other == max && from < at)) {
			max = other;
			at = from;
		}
	}
	if (lane == 0)
		best[row] = at;
}

void k_argmax(int32_t *best, const acc_t *x, int n, int v, int vocab)
{
	argmax_kernel<<<div_up(n, ARGMAX_ROWS), 32 * ARGMAX_ROWS, 0, cuda_stream()>>>(best, x, n, v,
										      vocab);
	CUDA_LAUNCHED();
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
