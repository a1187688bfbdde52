// SPDX-License-Identifier: MIT
/*
 * Pooling over positions, and factors of heads from pooled values.
 *
 * A block pools some columns of one sequence: its threads cut the positions in
 * SEGMENTS, sum each in double, and go over them again with what came before (backward:
 * with what comes behind).
 */
#include "act.cuh"
#include "kernels_gate.h"
#include "rows.cuh"

enum {
	COLUMNS = 32,
	SEGMENTS = 32,
	THREADS = 256,
	ROWS = 128,		/* whose weight gradient is summed in float */
	AHEAD = 8,		/* rows that are asked for at a time */
	HEADS = 8,		/* summed at a time */
};

enum pool_kind { POOL_MEAN, POOL_MEAN_BWD, POOL_ALL };

/* What position @i counts for in a sum. */
template <enum pool_kind P> static __device__ __forceinline__ double term(float x, int i)
{
	return P == POOL_MEAN_BWD ? x * (1.0 / (i + 1)) : x;
}

/* y may be x: a thread reads an element before it writes it. */
template <enum pool_kind P> static __global__ void __launch_bounds__(COLUMNS * SEGMENTS)
pool_kernel(float *y, const float *x, int t, int c)
{
	__shared__ double part[SEGMENTS][COLUMNS];
	int j = blockIdx.x * COLUMNS + threadIdx.x, s = threadIdx.y;
	int len = div_up(t, SEGMENTS), from = min(s * len, t), to = min(from + len, t);
	long at = (long)blockIdx.y * t * c + j;
	double sum = 0, all = 0;

	if (j < c)
#pragma unroll 4
		for (int i = from; i < to; i++)
			sum += term<P>(x[at + (long)i * c], i);
	part[s][threadIdx.x] = sum;
	__syncthreads();
	if (j >= c)
		return;
	sum = 0;
	for (int k = 0; k < SEGMENTS; k++) {
		double one = part[k][threadIdx.x];

		all += one;
		if (P == POOL_MEAN ? k < s : k > s)
			sum += one;
	}
	if (P == POOL_ALL) {
		for (int i = from; i < to; i++)
			y[at + (long)i * c] = all / t;
	} else if (P == POOL_MEAN) {
#pragma unroll 4
		for (int i = from; i < to; i++) {
			sum += term<P>(x[at + (long)i * c], i);
			y[at + (long)i * c] = sum * (1.0 / (i + 1));
		}
	} else {
#pragma unroll 4
		for (int i = to - 1; i >= from; i--) {
			sum += term<P>(x[at + (long)i * c], i);
			y[at + (long)i * c] = sum;
		}
	}
}

template <enum pool_kind P> static void pool(float *y, const float *x, int b, int t, int c)
{
	dim3 grid(div_up(c, COLUMNS), b), block(COLUMNS, SEGMENTS);

	pool_kernel<P><<<grid, block, 0, cuda_stream()>>>(y, x, t, c);
	CUDA_LAUNCHED();
}

void k_causal_mean_fwd(acc_t *zbar, const acc_t *z, int b, int t, int c)
{
	pool<POOL_MEAN>(zbar, z, b, t, c);
}

void k_causal_mean_bwd(acc_t *dz, const acc_t *dzbar, int b, int t, int c)
{
	pool<POOL_MEAN_BWD>(dz, dzbar, b, t, c);
}

void k_sequence_mean_fwd(acc_t *zbar, const acc_t *z, int b, int t, int c)
{
	pool<POOL_ALL>(zbar, z, b, t, c);
}

void k_sequence_mean_bwd(acc_t *dz, const acc_t *dzbar, int b, int t, int c)
{
	pool<POOL_ALL>(dz, dzbar, b, t, c);
}

/* ---- decode -------------------------------------------------------------------- */

static __global__ void mean_step_kernel(float *zbar, float *sum, long sum_seq, const float *z,
					const int32_t *pos, int c)
{
	int j = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y;
	float x, inv = 1.0f / (pos[i] + 1);

	if (j >= c)
		return;
	x = z[(long)i * c + j];
	x = pos[i] ? sum[i * sum_seq + j] + x : x;
	sum[i * sum_seq + j] = x;
	zbar[(long)i * c + j] = x * inv;
}

void k_causal_mean_step(acc_t *zbar, acc_t *sum, long sum_seq, const acc_t *z, const int32_t *pos,
			int b, int c)
{
	mean_step_kernel<<<dim3(div_up(c, THREADS), b), THREADS, 0, cuda_stream()>>>(
		zbar, sum, sum_seq, z, pos, c);
	CUDA_LAUNCHED();
}

static __global__ void mean_fill_kernel(float *sum, long sum_seq, const float *zbar,
					const int32_t *len, int t, int c)
{
	int j = blockIdx.x * blockDim.x + threadIdx.x;
	long i = blockIdx.y;

	if (j < c)
		sum[i * sum_seq + j] = len[i] * zbar[(i * t + len[i] - 1) * c + j];
}

void k_causal_mean_fill(acc_t *sum, long sum_seq, const acc_t *zbar, const int32_t *len, int b,
			int t, int c)
{
	mean_fill_kernel<<<dim3(div_up(c, THREADS), b), THREADS, 0, cuda_stream()>>>(
		sum, sum_seq, zbar, len, t, c);
	CUDA_LAUNCHED();
}

/* ---- gates --------------------------------------------------------------------- */

/* A warp has a row. */
static __global__ void __launch_bounds__(THREADS)
gate_fwd_kernel(float *gamma, const float *zbar, const real *w, int n, int heads, int c,
		float alpha)
{
	int i = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;

	if (i >= n)
		return;
	for (int h0 = 0; h0 < heads; h0 += HEADS) {
		float sum[HEADS] = {};

		for (int j = lane; j < c; j += 32) {
			float z = zbar[(long)i * c + j];

#pragma unroll
			for (int h = 0; h < HEADS; h++)
				if (h0 + h < heads)
					sum[h] += z * get(w + (long)(h0 + h) * c + j);
		}
#pragma unroll
		for (int h = 0; h < HEADS; h++) {
			float total = warp_sum(sum[h]);

			if (lane == h && h0 + h < heads)
				gamma[(long)i * heads + h0 + h] = 1 - alpha +
								  alpha * sigmoid(total);
		}
	}
}

void k_head_gate_fwd(acc_t *gamma, const acc_t *zbar, const param_t *w, int n, int heads, int c,
		     double alpha)
{
	gate_fwd_kernel<<<div_up(n, THREADS / 32), THREADS, 0, cuda_stream()>>>(
		gamma, zbar, real_of(w), n, heads, c, alpha);
	CUDA_LAUNCHED();
}

/* alpha g (1 - g) = u (alpha - u) / alpha with u = gamma - (1 - alpha) = alpha g */
static __device__ __forceinline__ float gate_slope(float gamma, float alpha)
{
	float u = gamma - (1 - alpha);

	return alpha == 0 ? 0 : u * (alpha - u) / alpha;
}

/* Of one column and @rows rows: dz (on top of what it is, where @more), and what dw gets. */
static __device__ __forceinline__ void
rows_bwd(float *dzbar, const float *zbar, int c, int rows, const float (*d)[HEADS],
	 const float (&own)[HEADS], float (&sum)[HEADS], bool more)
{
	float z[AHEAD], dz[AHEAD];

#pragma unroll
	for (int i = 0; i < AHEAD; i++) {
		z[i] = i < rows ? zbar[i * c] : 0;
		dz[i] = i < rows && more ? dzbar[i * c] : 0;
	}
#pragma unroll
	for (int i = 0; i < AHEAD; i++) {
		if (i >= rows)
			break;
#pragma unroll
		for (int h = 0; h < HEADS; h++) {
			dz[i] += d[i][h] * own[h];
			sum[h] += d[i][h] * z[i];
		}
		dzbar[i * c] = dz[i];
	}
}

/* dzbar of ROWS rows in some columns, and their part [heads][c] of dw */
static __global__ void __launch_bounds__(THREADS)
gate_bwd_kernel(float *dzbar, float *part, const float *gamma, const float *dgamma,
		const float *zbar, const real *w, int n, int heads, int c, float alpha)
{
	__shared__ float d[ROWS][HEADS];
	int i0 = blockIdx.x * ROWS, rows = min(ROWS, n - i0);
	int j = blockIdx.y * blockDim.x + threadIdx.x;

	part += (long)blockIdx.x * heads * c;
	for (int h0 = 0; h0 < heads; h0 += HEADS) {
		float own[HEADS] = {}, sum[HEADS] = {};

		__syncthreads();
		for (int k = threadIdx.x; k < rows * HEADS; k += blockDim.x) {
			int h = h0 + k % HEADS;
			long at = (long)(i0 + k / HEADS) * heads + h;

			d[k / HEADS][k % HEADS] = h < heads ?
				dgamma[at] * gate_slope(gamma[at], alpha) : 0;
		}
		__syncthreads();
		if (j >= c)
			continue;
#pragma unroll
		for (int h = 0; h < HEADS; h++)
			if (h0 + h < heads)
				own[h] = get(w + (long)(h0 + h) * c + j);
		for (int i = 0; i < rows; i += AHEAD)
			rows_bwd(dzbar + (long)(i0 + i) * c + j, zbar + (long)(i0 + i) * c + j, c,
				 min((int)AHEAD, rows - i), d + i, own, sum, h0 > 0);
#pragma unroll
		for (int h = 0; h < HEADS; h++)
			if (h0 + h < heads)
				part[(long)(h0 + h) * c + j] = sum[h];
	}
}

void k_head_gate_bwd(acc_t *dzbar, grad_t *dw, const acc_t *gamma, const acc_t *dgamma,
		     const acc_t *zbar, const param_t *w, int n, int heads, int c, double alpha,
		     void *scratch)
{
	float *part = (float *)scratch;
	int chunks = div_up(n, ROWS), size = heads * c;
	int threads = MIN(ROUND_UP(c, 32), (int)THREADS);

	gate_bwd_kernel<<<dim3(chunks, div_up(c, threads)), threads, 0, cuda_stream()>>>(
		dzbar, part, gamma, dgamma, zbar, real_of(w), n, heads, c, alpha);
	CUDA_LAUNCHED();
	sum_parts(sum_to<1>{ { dw } }, part, chunks, size);
}

size_t k_head_gate_scratch(int n, int heads, int c)
{
	return (size_t)div_up(n, ROWS) * heads * c * sizeof(float);
}
