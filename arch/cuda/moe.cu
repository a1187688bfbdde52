// SPDX-License-Identifier: MIT
/*
 * Mixtures of experts: routing, rows sorted by expert, and the balance between them. How
 * many rows an expert has is known on the device alone; the products of its rows stand in
 * moe_gemm.cu. A warp has a token, a block a row or an expert.
 */
#include <limits.h>

#include "kernels_moe.h"
#include "swiglu.cuh"

enum {
	WARPS = 8,		/* tokens of a block */
	THREADS = 32 * WARPS,
	SORT_THREADS = 1024,
	PARTS = 512,		/* partial sums of the balance, at most */
};

/* ---- routing ---------------------------------------------------------------------- */

/* The best of the warp: the largest key, of equals the smaller expert. */
struct best {
	float key;
	int e;
};

static __device__ __forceinline__ bool ahead(float key, int e, const struct best &b)
{
	return key > b.key || (key == b.key && e < b.e);
}

/* The first behind @last in the order of slots; e INT_MAX where there is none but NaN. */
static __device__ struct best best_behind(const struct moe &m, const float *g,
					  const struct best &last)
{
	struct best b = { -INFINITY, INT_MAX };

	for (int e = threadIdx.x % 32; e < m.experts; e += 32) {
		float key = g[e] + (m.bias ? m.bias[e] : 0);

		if (ahead(last.key, last.e, { key, e }) && ahead(key, e, b))
			b = { key, e };
	}
#pragma unroll
	for (int step = 16; step; step /= 2) {
		struct best other = { __shfl_xor_sync(~0u, b.key, step),
				      __shfl_xor_sync(~0u, b.e, step) };

		if (ahead(other.key, other.e, b))
			b = other;
	}
	return b;
}

/* The k largest of a token, and the softmax of their logits. */
static __global__ void __launch_bounds__(THREADS) choose_kernel(struct moe m)
{
	long token = (long)blockIdx.x * WARPS + threadIdx.x / 32;
	const float *g = m.logits + token * m.experts;
	int lane = threadIdx.x % 32;
	int32_t *slot = m.slot + token * m.k;
	struct best last = { INFINITY, -1 };
	float top = -INFINITY, sum = 0;

	let_next();
	after_previous();
	if (token >= m.n)
		return;
	for (int j = 0; j < m.k; j++) {
		struct best b = best_behind(m, g, last);
		int e = b.e == INT_MAX ? j : b.e;	/* nothing but NaN: any, the loss tells */

		last = b.e == INT_MAX ? last : b;
		top = fmaxf(top, g[e]);
		if (!lane)
			slot[j] = e;
	}
	__syncwarp();
	for (int j = lane; j < m.k; j += 32)
		sum += expf(g[slot[j]] - top);
	sum = warp_sum(sum);
	for (int j = lane; j < m.k; j += 32)
		m.p[token * m.k + j] = expf(g[slot[j]] - top) / sum;
}

/* Sum over the threads before this one; @all: the block's. part[32] is shared. */
static __device__ int block_before(int x, int *part, int *all)
{
	int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = x, warps;

#pragma unroll
	for (int step = 1; step < 32; step *= 2) {
		int got = __shfl_up_sync(~0u, sum, step);

		sum += lane >= step ? got : 0;
	}
	__syncthreads();
	if (lane == 31)
		part[warp] = sum;
	__syncthreads();
	warps = part[lane];
#pragma unroll
	for (int step = 1; step < 32; step *= 2) {
		int got = __shfl_up_sync(~0u, warps, step);

		warps += lane >= step ? got : 0;
	}
	*all = __shfl_sync(~0u, warps, 31);
	return sum - x + (warp ? __shfl_sync(~0u, warps, warp - 1) : 0);
}

/*
 * Rows of one expert: a block reads all slots, each thread a run of them, and so knows how
 * many pairs go to smaller experts and which come earlier.
 */
static __global__ void __launch_bounds__(SORT_THREADS) sort_kernel(struct moe m)
{
	__shared__ int part[32];
	int pairs = m.n * m.k, run = div_up(pairs, SORT_THREADS), e = blockIdx.x;
	int from = min((long)threadIdx.x * run, (long)pairs), to = min((long)from + run, (long)pairs);
	int less = 0, own = 0, row, all;

	let_next();
	after_previous();
	for (int i = from; i < to; i++) {
		less += m.slot[i] < e;
		own += m.slot[i] == e;
	}
	block_before(less, part, &less);
	row = less + block_before(own, part, &all);
	for (int i = from; i < to; i++)
		if (m.slot[i] == e) {
			m.place[i] = row;
			m.pair[row++] = i;
		}
	if (threadIdx.x)
		return;
	m.first[e] = less;
	if (e == m.experts - 1)
		m.first[e + 1] = less + all;
}

void k_moe_route(const struct moe *m)
{
	launch(choose_kernel, div_up(m->n, WARPS), THREADS, 0, *m);
	launch(sort_kernel, m->experts, SORT_THREADS, 0, *m);
}

static __global__ void __launch_bounds__(THREADS)
route_bwd_kernel(float *dlogits, const float *dp, struct moe m)
{
	long token = (long)blockIdx.x * WARPS + threadIdx.x / 32;
	const int32_t *place = m.place + token * m.k, *slot = m.slot + token * m.k;
	const float *p = m.p + token * m.k;
	float *d = dlogits + token * m.experts, mean = 0;
	int lane = threadIdx.x % 32;

	if (token >= m.n)
		return;
	for (int e = lane; e < m.experts; e += 32)
		d[e] = 0;
	for (int j = lane; j < m.k; j += 32)
		mean += p[j] * dp[place[j]];
	mean = warp_sum(mean);
	__syncwarp();
	for (int j = lane; j < m.k; j += 32)
		d[slot[j]] = p[j] * (dp[place[j]] - mean);
}

void k_moe_route_bwd(acc_t *dlogits, const acc_t *dp, const struct moe *m)
{
	route_bwd_kernel<<<div_up(m->n, WARPS), THREADS, 0, cuda_stream()>>>(dlogits, dp, *m);
	CUDA_LAUNCHED();
}

/* ---- rows -------------------------------------------------------------------------- */

template <int W> static __global__ void __launch_bounds__(SWIGLU_THREADS)
gather_kernel(real *rows, const real *x, int c, struct moe m)
{
	long row = blockIdx.x;
	const real *from;

	let_next();
	after_previous();
	from = x + (long)(m.pair[row] / m.k) * c;
	for (int j = threadIdx.x * W; j < c; j += blockDim.x * W) {
		float v[W];

		row_load<W>(v, from + j);
		row_store<W>(rows + row * c + j, v);
	}
}

void k_moe_gather(act_t *rows, const act_t *x, int c, const struct moe *m)
{
	int pairs = m->n * m->k;

	if (swiglu_wide(rows, x, c))
		launch(gather_kernel<WIDE>, pairs, swiglu_threads(c, WIDE), 0, real_of(rows),
		       real_of(x), c, *m);
	else
		launch(gather_kernel<1>, pairs, swiglu_threads(c, 1), 0, real_of(rows), real_of(x),
		       c, *m);
}

template <int W> static __global__ void __launch_bounds__(SWIGLU_THREADS)
combine_kernel(real *y, const real *rows, int c, bool weighted, float beta, struct moe m)
{
	long token = blockIdx.x;

	let_next();
	after_previous();
	for (int j = threadIdx.x * W; j < c; j += blockDim.x * W) {
		float sum[W] = {}, x[W];

		if (beta != 0) {
			row_load<W>(sum, y + token * c + j);
#pragma unroll
			for (int e = 0; e < W; e++)
				sum[e] *= beta;
		}
		for (int s = 0; s < m.k; s++) {
			float p = weighted ? m.p[token * m.k + s] : 1;

			row_load<W>(x, rows + (long)m.place[token * m.k + s] * c + j);
#pragma unroll
			for (int e = 0; e < W; e++)
				sum[e] += p * x[e];
		}
		row_store<W>(y + token * c + j, sum);
	}
}

void k_moe_combine(act_t *y, const act_t *rows, int c, bool weighted, double beta,
		   const struct moe *m)
{
	if (swiglu_wide(y, rows, c))
		launch(combine_kernel<WIDE>, m->n, swiglu_threads(c, WIDE), 0, real_of(y),
		       real_of(rows), c, weighted, beta, *m);
	else
		launch(combine_kernel<1>, m->n, swiglu_threads(c, 1), 0, real_of(y), real_of(rows),
		       c, weighted, beta, *m);
}

template <int W> static __global__ void __launch_bounds__(SWIGLU_THREADS)
moe_swiglu_kernel(real *dgu, real *h, float *dp, const real *gu, const real *dh, int width,
		  struct moe m)
{
	__shared__ float part[32];
	long row = blockIdx.x;
	float p, sum = 0;

	after_previous();
	p = m.p[m.pair[row]];
	for (int j = threadIdx.x * W; j < width; j += blockDim.x * W) {
		struct swiglu_piece<W> v;
		float x[W];

		swiglu_get(v, gu + 2 * row * width + j, dh + row * width + j, width);
#pragma unroll
		for (int e = 0; e < W; e++) {
			x[e] = v.g[e] * v.s[e] * v.u[e];
			sum += v.d[e] * x[e];
			x[e] *= p;
		}
		row_store<W>(h + row * width + j, x);
		swiglu_put(v, dgu + 2 * row * width + j, width, p);
	}
	sum = block_sum(sum, part);
	if (!threadIdx.x)
		dp[row] = sum;
}

void k_moe_swiglu_bwd(act_t *dgu, act_t *h, acc_t *dp, const act_t *gu, const act_t *dh, int width,
		      const struct moe *m)
{
	int pairs = m->n * m->k;

	if (swiglu_wide(dgu, gu, width) && swiglu_wide(h, dh, width))
		launch(moe_swiglu_kernel<WIDE>, pairs, swiglu_threads(width, WIDE), 0, real_of(dgu),
		       real_of(h), dp, real_of(gu), real_of(dh), width, *m);
	else
		launch(moe_swiglu_kernel<1>, pairs, swiglu_threads(width, 1), 0, real_of(dgu),
		       real_of(h), dp, real_of(gu), real_of(dh), width, *m);
}

/* ---- balance ----------------------------------------------------------------------- */

/* Largest logit of a token, and the sum of the others' exponentials relative to it. */
static __device__ float2 softmax_of(const struct moe &m, const float *g)
{
	float top = -INFINITY, sum = 0;

	for (int e = threadIdx.x % 32; e < m.experts; e += 32)
		top = fmaxf(top, g[e]);
#pragma unroll
	for (int step = 16; step; step /= 2)
		top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
	for (int e = threadIdx.x % 32; e < m.experts; e += 32)
		sum += expf(g[e] - top);
	return { top, warp_sum(sum) };
}

/* Sum over experts of a token's softmax of all logits times their pairs. */
static __device__ float mean_load(const struct moe &m, const float *g, const float2 &softmax)
{
	float mean = 0;

	for (int e = threadIdx.x % 32; e < m.experts; e += 32)
		mean += expf(g[e] - softmax.x) * (m.first[e + 1] - m.first[e]);
	return warp_sum(mean) / softmax.y;
}

/* part[block] = sum over the block's tokens, warps in order */
static __global__ void __launch_bounds__(THREADS)
balance_kernel(double *part, struct moe m, int tokens)
{
	__shared__ double all[WARPS];
	int first = blockIdx.x * tokens, warp = threadIdx.x / 32;
	double sum = 0;

	for (int i = first + warp; i < min(first + tokens, m.n); i += WARPS) {
		const float *g = m.logits + (long)i * m.experts;

		sum += mean_load(m, g, softmax_of(m, g));
	}
	if (threadIdx.x % 32 == 0)
		all[warp] = sum;
	__syncthreads();
	for (int w = 1; !threadIdx.x && w < WARPS; w++)
		sum += all[w];
	if (!threadIdx.x)
		part[blockIdx.x] = sum;
}

/* What one pair of one token weighs: E / (n k) for f, 1 / n for P. */
static double pair_weight(double weight, const struct moe *m)
{
	return weight * m->experts / ((double)m->n * m->k) / m->n;
}

void k_moe_balance(double *dst, double weight, const struct moe *m)
{
	int tokens = MAX(div_up(m->n, PARTS), WARPS), parts = div_up(m->n, tokens);
	double *part = (double *)workspace_part(parts * sizeof(*part));

	balance_kernel<<<parts, THREADS, 0, cuda_stream()>>>(part, *m, tokens);
	CUDA_LAUNCHED();
	sum_doubles(dst, part, parts, pair_weight(weight, m), 1);
}

static __global__ void __launch_bounds__(THREADS)
balance_bwd_kernel(float *dlogits, float one, struct moe m)
{
	long token = (long)blockIdx.x * WARPS + threadIdx.x / 32;
	const float *g = m.logits + token * m.experts;
	float *d = dlogits + token * m.experts, mean;
	float2 softmax;

	if (token >= m.n)
		return;
	softmax = softmax_of(m, g);
	mean = mean_load(m, g, softmax);
	for (int e = threadIdx.x % 32; e < m.experts; e += 32)
		d[e] += one * (expf(g[e] - softmax.x) / softmax.y *
			       (m.first[e + 1] - m.first[e] - mean));
}

void k_moe_balance_bwd(acc_t *dlogits, double weight, const struct moe *m)
{
	balance_bwd_kernel<<<div_up(m->n, WARPS), THREADS, 0, cuda_stream()>>>(
		dlogits, pair_weight(weight, m), *m);
	CUDA_LAUNCHED();
}

static __global__ void __launch_bounds__(THREADS) excess_kernel(float *excess, struct moe m)
{
	int e = blockIdx.x * THREADS + threadIdx.x;

	if (e < m.experts)
		excess[e] = (double)m.experts * (m.first[e + 1] - m.first[e]) - (double)m.n * m.k;
}

void k_moe_excess(grad_t *excess, const struct moe *m)
{
	excess_kernel<<<div_up(m->experts, THREADS), THREADS, 0, cuda_stream()>>>(excess, *m);
	CUDA_LAUNCHED();
}
