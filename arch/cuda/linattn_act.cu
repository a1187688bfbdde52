// SPDX-License-Identifier: MIT
/*
 * What linear RNNs do element by element, before and behind their recurrence. Some lanes have
 * a row of a head; of several rows where their sums go down columns.
 */
#include "each.cuh"
#include "kernels_linattn.h"
#include "silu.cuh"

enum {
	THREADS = 256,
	LANES_MAX = 32,
};

#define TINY 1e-12f		/* beside |x|^2, which may be 0 */

struct decay_fwd {
	float *g;
	const real *z;
	float inv;

	template <int W> __device__ void at(size_t i) const
	{
		float x[W];

		row_load<W>(x, z + i);
#pragma unroll
		for (int e = 0; e < W; e++)
			x[e] = softplus(-x[e]) * inv;
		row_store<W>(g + i, x);
	}
};

void k_log_decay_fwd(acc_t *g, const act_t *z, size_t n, double tau)
{
	each(decay_fwd{ g, real_of(z), (float)(-1 / tau) }, n, row_wide(g, 0) && row_wide(z, 0));
}

struct decay_bwd {
	real *dz;
	const float *dg;
	const real *z;
	float inv;

	template <int W> __device__ void at(size_t i) const
	{
		float x[W], d[W];

		row_load<W>(x, z + i);
		row_load<W>(d, dg + i);
#pragma unroll
		for (int e = 0; e < W; e++)
			d[e] *= sigmoid(-x[e]) * inv;
		row_store<W>(dz + i, d);
	}
};

void k_log_decay_bwd(act_t *dz, const acc_t *dg, const act_t *z, size_t n, double tau)
{
	each(decay_bwd{ real_of(dz), dg, real_of(z), (float)(1 / tau) }, n,
	     row_wide(dz, 0) && row_wide(dg, 0) && row_wide(z, 0));
}

/* ---- rows of few lanes ------------------------------------------------------------ */

/* Lanes of a row, a power of two: blockDim.x. */
static int lanes_of(int width, int w)
{
	int lanes = 1;

	while (lanes < LANES_MAX && lanes * w < width)
		lanes *= 2;
	return lanes;
}

/* To all lanes of a row. */
static __device__ __forceinline__ float lanes_sum(float x)
{
	for (int step = blockDim.x / 2; step; step /= 2)
		x += __shfl_xor_sync(~0u, x, step);
	return x;
}

/* <x, y> of a row; all lanes of the warp are here */
template <int W>
static __device__ __forceinline__ float row_dot(const real *x, const real *y, int width)
{
	float sum = 0;

	for (int j = threadIdx.x * W; j < width; j += blockDim.x * W) {
		float a[W], b[W];

		row_load<W>(a, x + j);
		row_load<W>(b, y + j);
#pragma unroll
		for (int e = 0; e < W; e++)
			sum = fmaf(a[e], b[e], sum);
	}
	return lanes_sum(sum);
}

template <int W>
static __global__ void __launch_bounds__(THREADS)
unit_fwd_kernel(real *y, const real *x, int n, int width)
{
	long i = (long)blockIdx.x * blockDim.y + threadIdx.y;
	int own = i < n ? width : 0;
	float r;

	let_next();
	after_previous();
	x += i * width;
	y += i * width;
	r = 1 / sqrtf(row_dot<W>(x, x, own) + TINY);
	for (int j = threadIdx.x * W; j < own; j += blockDim.x * W) {
		float v[W];

		row_load<W>(v, x + j);
#pragma unroll
		for (int e = 0; e < W; e++)
			v[e] *= r;
		row_store<W>(y + j, v);
	}
}

void k_unit_fwd(act_t *y, const act_t *x, int n, int width)
{
	bool wide = row_wide(y, width) && row_wide(x, width);
	int lanes = lanes_of(width, wide ? WIDE : 1), rows = THREADS / lanes;
	dim3 block(lanes, rows);

	launch(wide ? unit_fwd_kernel<WIDE> : unit_fwd_kernel<1>, div_up(n, rows), block, 0,
	       real_of(y), real_of(x), n, width);
}

/* dx = r (dy - x <x, dy> r^2) */
template <int W>
static __global__ void __launch_bounds__(THREADS)
unit_bwd_kernel(real *dx, const real *dy, const real *x, int n, int width)
{
	long i = (long)blockIdx.x * blockDim.y + threadIdx.y;
	int own = i < n ? width : 0;
	float r, along;

	after_previous();
	x += i * width;
	dy += i * width;
	dx += i * width;
	r = 1 / sqrtf(row_dot<W>(x, x, own) + TINY);
	along = row_dot<W>(x, dy, own) * r * r;
	for (int j = threadIdx.x * W; j < own; j += blockDim.x * W) {
		float v[W], d[W];

		row_load<W>(v, x + j);
		row_load<W>(d, dy + j);
#pragma unroll
		for (int e = 0; e < W; e++)
			d[e] = r * (d[e] - v[e] * along);
		row_store<W>(dx + j, d);
	}
}

void k_unit_bwd(act_t *dx, const act_t *dy, const act_t *x, int n, int width)
{
	bool wide = row_wide(dx, width) && row_wide(dy, width) && row_wide(x, width);
	int lanes = lanes_of(width, wide ? WIDE : 1), rows = THREADS / lanes;
	dim3 block(lanes, rows);

	launch(wide ? unit_bwd_kernel<WIDE> : unit_bwd_kernel<1>, div_up(n, rows), block, 0,
	       real_of(dx), real_of(dy), real_of(x), n, width);
}

/* ---- selective state spaces -------------------------------------------------------- */

struct ssm_fwd {
	struct ssm a;
	real *v;

	template <int W> __device__ void at(size_t i) const
	{
		int at = i / a.p, row = at / a.heads, h = at % a.heads, e0 = i % a.p;
		float dt = softplus(get(real_of(a.raw) + row * a.raw_row + h) + a.dt_bias[h]), x[W];

		if (!e0) {
			a.dt[at] = dt;
			a.g[at] = -dt * expf(a.a_log[h]);
		}
		row_load<W>(x, real_of(a.x) + row * a.x_row + h * a.p + e0);
#pragma unroll
		for (int e = 0; e < W; e++)
			x[e] *= dt;
		row_store<W>(v + i, x);
	}
};

/* Can heads be read WIDE elements at a time? */
static bool ssm_wide(const struct ssm *a, const void *p, const void *q)
{
	return a->p % WIDE == 0 && row_wide(a->x, a->x_row) && row_wide(p, 0) && row_wide(q, 0);
}

void k_ssm_fwd(const struct ssm *a, act_t *v)
{
	each(ssm_fwd{ *a, real_of(v) }, (size_t)a->n * a->heads * a->p, ssm_wide(a, v, NULL));
}

struct ssm_skip {
	struct ssm a;
	real *y;
	const real *o;

	template <int W> __device__ void at(size_t i) const
	{
		int width = a.heads * a.p, row = i / width, j = i % width;
		float x[W], out[W], d = a.d[j / a.p];

		row_load<W>(x, real_of(a.x) + row * a.x_row + j);
		row_load<W>(out, o + i);
#pragma unroll
		for (int e = 0; e < W; e++)
			out[e] = fmaf(d, x[e], out[e]);
		row_store<W>(y + i, out);
	}
};

void k_ssm_skip(const struct ssm *a, act_t *y, const act_t *o)
{
	each(ssm_skip{ *a, real_of(y), real_of(o) }, (size_t)a->n * a->heads * a->p,
	     ssm_wide(a, y, o));
}

/* dx of one row of one head; sum: <dv, x> and <dy, x> */
template <int W>
static __device__ __forceinline__ void ssm_row(float (&sum)[2], const struct ssm &a,
					       const struct ssm_grad &d, long row, int h, bool inside)
{
	long at = (row * a.heads + h) * a.p, in = row * a.x_row + (long)h * a.p;
	float dt = inside ? a.dt[row * a.heads + h] : 0, skip = a.d[h];

	sum[0] = sum[1] = 0;
	for (int j = threadIdx.x * W; inside && j < a.p; j += blockDim.x * W) {
		float x[W], dv[W], dy[W];

		row_load<W>(x, real_of(a.x) + in + j);
		row_load<W>(dv, real_of(d.dv) + at + j);
		row_load<W>(dy, real_of(d.dy) + at + j);
#pragma unroll
		for (int e = 0; e < W; e++) {
			sum[0] = fmaf(dv[e], x[e], sum[0]);
			sum[1] = fmaf(dy[e], x[e], sum[1]);
			dv[e] = dt * dv[e] + skip * dy[e];
		}
		row_store<W>(real_of(d.dx) + in + j, dv);
	}
	sum[0] = lanes_sum(sum[0]);
	sum[1] = lanes_sum(sum[1]);
}

/* part[chunk][3][heads]: ddt_bias, da_log, dd. A block has the rows of a chunk of one head. */
template <int W>
static __global__ void __launch_bounds__(THREADS)
ssm_bwd_kernel(struct ssm a, struct ssm_grad d, float *part, int rows)
{
	__shared__ float all[THREADS][3];
	int h = blockIdx.x, end = min((int)(blockIdx.y + 1) * rows, a.n);
	float decay = expf(a.a_log[h]), own[3] = {};

#pragma unroll 2
	for (int i0 = blockIdx.y * rows; i0 < end; i0 += blockDim.y) {
		long i = i0 + threadIdx.y, at = i * a.heads + h;
		float sum[2], raw, dg;

		ssm_row<W>(sum, a, d, i, h, i < end);
		if (threadIdx.x || i >= end)
			continue;
		dg = d.dg[at];
		raw = get(real_of(a.raw) + i * a.raw_row + h) + a.dt_bias[h];
		raw = (sum[0] - dg * decay) * sigmoid(raw);
		put(real_of(d.draw) + i * a.raw_row + h, raw);
		own[0] += raw;
		own[1] += dg * a.g[at];
		own[2] += sum[1];
	}
	for (int s = 0; s < 3 && !threadIdx.x; s++)
		all[threadIdx.y][s] = own[s];
	__syncthreads();
	if (threadIdx.y || threadIdx.x >= 3)
		return;
	for (int s = threadIdx.x; s < 3; s += blockDim.x) {
		float sum = 0;

		for (int r = 0; r < blockDim.y; r++)
			sum += all[r][s];
		part[((long)blockIdx.y * 3 + s) * a.heads + h] = sum;
	}
}

void k_ssm_bwd(const struct ssm *a, const struct ssm_grad *d)
{
	bool wide = ssm_wide(a, d->dv, d->dy) && row_wide(d->dx, a->x_row);
	int lanes = lanes_of(a->p, wide ? WIDE : 1), rows = sum_chunk(a->n);
	dim3 grid(a->heads, div_up(a->n, rows)), block(lanes, THREADS / lanes);
	float *part = (float *)workspace_part((size_t)grid.y * 3 * a->heads * sizeof(*part));

	if (wide)
		ssm_bwd_kernel<WIDE><<<grid, block, 0, cuda_stream()>>>(*a, *d, part, rows);
	else
		ssm_bwd_kernel<1><<<grid, block, 0, cuda_stream()>>>(*a, *d, part, rows);
	CUDA_LAUNCHED();
	sum_parts(sum_to<3>{ { d->ddt_bias, d->da_log, d->dd } }, part, grid.y, a->heads);
}
