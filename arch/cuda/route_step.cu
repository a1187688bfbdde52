// SPDX-License-Identifier: MIT
/*
 * Routing of one new position per sequence: the dense row is at hand, so the selection of
 * route.cu runs on it directly and the row stays dense.
 */
#include "route.cuh"

enum { THREADS = 256 };

/* Keep the topk largest of row[n], the rest is 0. A warp selects. */
template <int R> static __device__ void row_topk(const struct route_step &r, float *row, int n)
{
	route_key list[R] = {}, least = 0;
	int lane = threadIdx.x % 32;
	double sum = 0;
	float factor;

	if (threadIdx.x < 32) {
		for (int u0 = 0; u0 < n; u0 += 32) {
			int u = u0 + lane;

			list_offer<R>(list, u < n ? key_of(row[u], u) : 0, r.topk, least);
		}
	}
	__syncthreads();
	for (int u = threadIdx.x; u < n; u += THREADS)
		row[u] = 0;
	__syncthreads();
	if (threadIdx.x >= 32)
		return;
#pragma unroll
	for (int k = 0; k < R; k++)
		if (32 * k + lane < r.topk)
			sum += key_value(list[k]);
	factor = route_factor(r.normalize, warp_sum(sum));
#pragma unroll
	for (int k = 0; k < R; k++)
		if (32 * k + lane < r.topk && list[k])
			row[key_index(list[k])] = factor * key_value(list[k]);
}

/* Keep the entries of row[n] from the threshold on. */
static __device__ void row_threshold(const struct route_step &r, float *row, int n)
{
	__shared__ double part[32];
	double squares = 0, sum = 0;
	float thr = 0, factor;

	if (r.mode == ROUTE_RMS) {
		for (int u = threadIdx.x; u < n; u += THREADS)
			squares += (double)row[u] * row[u];
		thr = r.tau * sqrt(block_sum(squares, part) / n);
	}
	for (int u = threadIdx.x; u < n; u += THREADS) {
		row[u] = row[u] >= thr ? row[u] : 0;
		sum += row[u];
	}
	factor = route_factor(r.normalize, block_sum(sum, part));
	for (int u = threadIdx.x; u < n; u += THREADS)
		row[u] *= factor;
}

template <int R> static __global__ void __launch_bounds__(THREADS)
step_kernel(struct route_step r, const float *p, long p_stride, int heads)
{
	int i = blockIdx.x / r.nr, set = blockIdx.x % r.nr, share = heads / r.nr;
	int n = r.pos[i] + 1;
	const float *from = p + ((long)i * heads + set * share) * p_stride;
	float *row = r.row + (long)blockIdx.x * r.row_stride;

	for (int u = threadIdx.x; u < n; u += THREADS) {
		float sum = from[u];

		for (int h = 1; h < share; h++)
			sum += from[h * p_stride + u];
		row[u] = sum * (1.0f / share);
	}
	__syncthreads();
	if (r.mode == ROUTE_TOPK)
		row_topk<R>(r, row, n);
	else
		row_threshold(r, row, n);
}

template <int R> static void step(const struct route_step *r, const float *p, long p_stride,
				  int heads)
{
	step_kernel<R><<<r->b * r->nr, THREADS, 0, cuda_stream()>>>(*r, p, p_stride, heads);
	CUDA_LAUNCHED();
}

void k_route_step(const struct route_step *r, const acc_t *p, long p_stride, int heads)
{
	if (r->mode != ROUTE_TOPK || r->topk <= 32)
		step<1>(r, p, p_stride, heads);
	else if (r->topk <= 64)
		step<2>(r, p, p_stride, heads);
	else if (r->topk <= 128)
		step<4>(r, p, p_stride, heads);
	else
		step<TOPK_MAX / 32>(r, p, p_stride, heads);
}

/* ---- gather -------------------------------------------------------------------- */

enum { STEP_THREADS = 64 };	/* a column each */

/* @own columns of each row set; x: the cache's column where these begin */
template <class Y> static __global__ void __launch_bounds__(STEP_THREADS)
gather_kernel(struct route_step r, Y *y, long ldy, const real *x, long seq, long row, int own,
	      float alpha, float beta)
{
	int i = blockIdx.y / r.nr, set = blockIdx.y % r.nr, n = r.pos[i] + 1;
	int c = blockIdx.x * STEP_THREADS + threadIdx.x;
	const float *weight = r.row + (long)blockIdx.y * r.row_stride;
	float sum = 0;

	if (c >= own)
		return;
	x += i * seq + (long)set * own + c;
	y += i * ldy + (long)set * own + c;
	if (beta != 0)
		sum = beta * get(y);
#pragma unroll 8
	for (int u = 0; u < n; u++)
		if (weight[u] != 0)	/* 0: not routed */
			sum += alpha * weight[u] * get(x + u * row);
	put(y, sum);
}

void k_route_gather_step(const struct route_step *r, const struct route_rows *y,
			 const struct cache_rows *x, double alpha, double beta)
{
	const real *from = real_of(x->base);
	int own = y->width / r->nr;

	gather_kernel<real><<<dim3(div_up(own, STEP_THREADS), r->b * r->nr), STEP_THREADS, 0,
			      cuda_stream()>>>(*r, real_of(y->x), y->ld, from, x->seq, x->row, own,
					       alpha, beta);
	CUDA_LAUNCHED();
	if (!y->wide)
		return;
	gather_kernel<float><<<dim3(div_up(y->wide_width, STEP_THREADS), r->b), STEP_THREADS, 0,
			       cuda_stream()>>>(*r, y->wide, y->wide_ld, from + y->width, x->seq,
						x->row, y->wide_width, alpha, beta);
	CUDA_LAUNCHED();
}
