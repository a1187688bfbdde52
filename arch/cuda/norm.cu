// SPDX-License-Identifier: MIT
/*
 * LayerNorm and RMSNorm with the residual add: a row stays in the registers of its
 * threads. The variance is that of the centred row, never E[x^2] - E[x]^2, which cancels.
 */
#include "norm.cuh"

enum {
	HOLD = 4,		/* groups of W elements that a thread holds */
	BLOCK = 128,		/* threads of a block, at least */
	THREADS_MAX = 512,	/* of one row: leaves 128 registers */
};

/* As many threads as hold a row; several rows where these are few. */
static dim3 row_block(int c, int w)
{
	int need = div_up(c, HOLD * w), t = 32;

	while (t < need)
		t *= 2;
	if (t > THREADS_MAX)
		die("a norm of %d columns: at most %d; lower CONFIG_N_EMBD", c,
		    THREADS_MAX * HOLD * w);
	return dim3(t, t < BLOCK ? BLOCK / t : 1);
}

/* Sums over the threads of a row, to all of them. */
template <int N> static __device__ __forceinline__ void row_sums(float (&sum)[N])
{
	__shared__ float part[N][THREADS_MAX / 32];
	int warps = blockDim.x / 32, lane = threadIdx.x % 32, first = threadIdx.y * warps;

#pragma unroll
	for (int i = 0; i < N; i++)
		sum[i] = warp_sum(sum[i]);
	if (warps == 1)
		return;
	__syncthreads();
	for (int i = 0; i < N && lane == 0; i++)
		part[i][first + threadIdx.x / 32] = sum[i];
	__syncthreads();
#pragma unroll
	for (int i = 0; i < N; i++)
		sum[i] = warp_sum(lane < warps ? part[i][first + lane] : 0);
}

/* Scale and shift of column @j on. */
template <int W> static __device__ __forceinline__ void affine(float (&w)[W], float (&bias)[W],
							       const struct norm &a, int j)
{
	row_load<W>(w, a.w + j);
	if (!a.rms)
		row_load<W>(bias, a.bias + j);
}

/* Asks for a thread's part of a row, all of it at once. */
template <int W> static __device__ __forceinline__ void row_ask(struct row_raw<W> (&raw)[HOLD],
								const real *p, int c)
{
#pragma unroll
	for (int k = 0; k < HOLD; k++) {
		int j = (k * blockDim.x + threadIdx.x) * W;

		if (j < c)
			raw[k] = *(const struct row_raw<W> *)(p + j);
	}
}

/* The squares of what is left without the mean, over the row. */
template <int W> static __device__ __forceinline__ float row_variance(const float (&x)[HOLD][W],
								      float mean, int c)
{
	float sum[1] = {};

#pragma unroll
	for (int k = 0; k < HOLD; k++)
		for (int e = 0; e < W; e++)
			if ((k * blockDim.x + threadIdx.x) * W < c)
				sum[0] += (x[k][e] - mean) * (x[k][e] - mean);
	row_sums(sum);
	return sum[0] / c;
}

/*
 * What is loaded comes before anything is stored: a load behind a store waits for what that waits
 * for. FEW: so do scale and shift, since there is nobody else to wait with.
 */
template <int W, bool FEW> static __global__ void __launch_bounds__(THREADS_MAX)
add_norm_fwd_kernel(struct norm a)
{
	int row = blockIdx.x * blockDim.y + threadIdx.y;
	bool inside = row < a.n;
	long at = (long)row * a.c;
	struct row_raw<W> raw[HOLD], raw_y[HOLD];
	float x[HOLD][W] = {}, w[FEW ? HOLD : 1][W], bias[FEW ? HOLD : 1][W] = {}, y[W];
	float sum[1] = {}, mean, rstd;

	let_next();
	after_previous();
	if (inside)
		row_ask<W>(raw, real_of(a.x) + at, a.c);
	if (inside && a.y)
		row_ask<W>(raw_y, real_of(a.y) + at, a.c);
#pragma unroll
	for (int k = 0; k < HOLD && FEW; k++)
		if (inside && (k * blockDim.x + threadIdx.x) * W < a.c)
			affine<W>(w[FEW * k], bias[FEW * k], a, (k * blockDim.x + threadIdx.x) * W);
#pragma unroll
	for (int k = 0; k < HOLD; k++) {
		int j = (k * blockDim.x + threadIdx.x) * W;

		if (!inside || j >= a.c)
			continue;
		row_load<W>(x[k], raw[k].e);
		if (a.y) {
			row_load<W>(y, raw_y[k].e);
#pragma unroll
			for (int e = 0; e < W; e++)
				x[k][e] = rounded(x[k][e] + y[e]);
			row_store<W>(real_of(a.xo) + at + j, x[k]);
		}
#pragma unroll
		for (int e = 0; e < W; e++)
			sum[0] += x[k][e];
	}
	if (!a.rms)
		row_sums(sum);
	mean = a.rms ? 0 : sum[0] / a.c;
	rstd = 1 / sqrtf(row_variance<W>(x, mean, a.c) + (float)a.epsilon);
	if (!inside)
		return;
	if (threadIdx.x == 0) {
		a.rstd[row] = rstd;
		if (!a.rms)
			a.mean[row] = mean;
	}
#pragma unroll
	for (int k = 0; k < HOLD; k++) {
		int j = (k * blockDim.x + threadIdx.x) * W;

		if (j >= a.c)
			continue;
		if (!FEW)
			affine<W>(w[0], bias[0], a, j);
#pragma unroll
		for (int e = 0; e < W; e++)
			x[k][e] = (x[k][e] - mean) * rstd * w[FEW * k][e] + bias[FEW * k][e];
		row_store<W>(real_of(a.xn) + at + j, x[k]);
	}
}

/* Rows of all tensors can be read W elements at a time. */
static bool norm_wide(const struct norm *a, const void *p, const void *q, const void *r)
{
	return row_wide(a->x, a->c) && row_wide(a->w, a->c) && row_wide(a->bias, 0) &&
	       row_wide(p, 0) && row_wide(q, 0) && row_wide(r, 0);
}

void k_add_norm_fwd(const struct norm *a)
{
	bool wide = norm_wide(a, a->y, a->y ? a->xo : NULL, a->xn);
	dim3 block = row_block(a->c, wide ? WIDE : 1);
	int grid = div_up(a->n, block.y);

	if (wide && grid <= cuda_multiprocessors())
		launch(add_norm_fwd_kernel<WIDE, true>, grid, block, 0, *a);
	else if (wide)
		launch(add_norm_fwd_kernel<WIDE, false>, grid, block, 0, *a);
	else
		launch(add_norm_fwd_kernel<1, false>, grid, block, 0, *a);
}

/* dx = dres + r (g - mean(g) - xhat mean(g xhat)), g = dxn w; no mean(g) in RMSNorm */
template <int W> static __global__ void __launch_bounds__(THREADS_MAX)
norm_bwd_kernel(struct norm_bwd n)
{
	const struct norm &a = n.a;
	int row = blockIdx.x * blockDim.y + threadIdx.y;
	bool inside = row < a.n;
	long at = (long)row * a.c;
	float mean = a.rms || !inside ? 0 : a.mean[row], r = inside ? a.rstd[row] : 0;
	float x[HOLD][W] = {}, g[HOLD][W] = {}, w[W];
	float sums[2] = {};	/* of g, of g xhat */

#pragma unroll
	for (int k = 0; k < HOLD; k++) {
		int j = (k * blockDim.x + threadIdx.x) * W;

		if (!inside || j >= a.c)
			continue;
		row_load<W>(x[k], real_of(a.x) + at + j);
		row_load<W>(g[k], n.dxn + at + j);
		row_load<W>(w, a.w + j);
#pragma unroll
		for (int e = 0; e < W; e++) {
			x[k][e] = (x[k][e] - mean) * r;
			g[k][e] *= w[e];
			sums[0] += g[k][e];
			sums[1] += g[k][e] * x[k][e];
		}
	}
	row_sums(sums);
	sums[0] = a.rms ? 0 : sums[0] / a.c;
	sums[1] /= a.c;
#pragma unroll
	for (int k = 0; k < HOLD; k++) {
		int j = (k * blockDim.x + threadIdx.x) * W;
		float res[W] = {};

		if (!inside || j >= a.c)
			continue;
		if (n.dres)
			row_load<W>(res, n.dres + at + j);
#pragma unroll
		for (int e = 0; e < W; e++)
			res[e] += r * (g[k][e] - sums[0] - x[k][e] * sums[1]);
		row_store<W>(n.dx + at + j, res);
	}
}

/* What a row adds to dw and db. */
template <int W> struct norm_row {
	struct norm a;
	const real *dxn;

	__device__ __forceinline__ void operator()(float (&v)[2][W], int i, int j) const
	{
		long at = (long)i * a.c + j;
		float mean = a.rms ? 0 : a.mean[i], r = a.rstd[i], x[W];

		row_load<W>(x, real_of(a.x) + at);
		row_load<W>(v[1], dxn + at);
#pragma unroll
		for (int e = 0; e < W; e++)
			v[0][e] = v[1][e] * ((x[e] - mean) * r);
	}
};

template <int W> static void norm_bwd(const struct norm_bwd *n)
{
	const struct norm *a = &n->a;
	dim3 block = row_block(a->c, W);

	sum_columns<2, W>(sum_to<2>{ { n->dw, a->rms ? NULL : n->db } }, norm_row<W>{ *a, n->dxn },
			  a->n, a->c);
	norm_bwd_kernel<W><<<div_up(a->n, block.y), block, 0, cuda_stream()>>>(*n);
	CUDA_LAUNCHED();
}

void k_norm_bwd(const struct norm *a, act_t *dx, const act_t *dres, const act_t *dxn, grad_t *dw,
		grad_t *db)
{
	struct norm_bwd n = { *a, real_of(dx), real_of(dres), real_of(dxn), dw, db };

	if (!norm_wide(a, dx, dres, dxn))
		norm_bwd<1>(&n);
	else if (!norm_bwd_team(&n))
		norm_bwd<WIDE>(&n);
}
