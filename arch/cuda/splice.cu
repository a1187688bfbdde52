// SPDX-License-Identifier: MIT
/*
 * The affine maps around a learned bottleneck. A thread keeps the map of its columns and
 * runs down rows, so that softplus is made once for many of them.
 */
#include "kernels_splice.h"
#include "rows.cuh"
#include "silu.cuh"

enum {
	LANES = 32,		/* threads side by side */
	DEEP = 8,		/* threads one below the other */
	THREADS = LANES * DEEP,
	EACH = 4,		/* rows that a thread has, where there are that many */
	PARTS = 512,		/* partial sums of errors, at most */
};

#define TINY 1e-12f		/* beside |c|^2, which may be 0 */

/* ---- maps ------------------------------------------------------------------------- */

/* y = x m + a + beta y; m = sigma or, @inverse, 1 / sigma; a = shift, -shift m or, NULL, 0 */
struct affine {
	real *y;
	const real *x;
	const float *scale, *shift;
	bool inverse;
	float beta;
	int n, r;
};

template <int W> static __global__ void __launch_bounds__(THREADS) affine_kernel(struct affine p)
{
	int j = (blockIdx.x * LANES + threadIdx.x) * W;
	float m[W], a[W] = {};

	let_next();
	after_previous();
	if (j >= p.r)
		return;
#pragma unroll
	for (int e = 0; e < W; e++) {
		m[e] = softplus(p.scale[j + e]);
		m[e] = p.inverse ? 1 / m[e] : m[e];
		if (p.shift)
			a[e] = p.inverse ? -p.shift[j + e] * m[e] : p.shift[j + e];
	}
#pragma unroll 4
	for (long i = blockIdx.y * DEEP + threadIdx.y; i < p.n; i += gridDim.y * DEEP) {
		float x[W], y[W] = {};

		row_load<W>(x, p.x + i * p.r + j);
		if (p.beta != 0)
			row_load<W>(y, p.y + i * p.r + j);
#pragma unroll
		for (int e = 0; e < W; e++)
			y[e] = fmaf(x[e], m[e], a[e]) + p.beta * y[e];
		row_store<W>(p.y + i * p.r + j, y);
	}
}

static void affine(act_t *y, const act_t *x, const float *shift, bool inverse, double beta,
		   const struct splice *s)
{
	const struct affine p = { real_of(y), real_of(x), s->scale, shift, inverse, (float)beta,
				  s->n, s->r };
	int deep = MIN(div_up(s->n, DEEP * (s->n < DEEP * EACH * cuda_multiprocessors() ? 1 : EACH)),
		       65535);
	dim3 block(LANES, DEEP);

	if (row_wide(y, s->r) && row_wide(x, s->r))
		launch(affine_kernel<WIDE>, dim3(div_up(s->r, LANES * WIDE), deep), block, 0, p);
	else
		launch(affine_kernel<1>, dim3(div_up(s->r, LANES), deep), block, 0, p);
}

void k_splice_in(act_t *u, const act_t *c, const struct splice *s)
{
	affine(u, c, s->shift, false, 0, s);
}

void k_splice_out(act_t *chat, const act_t *e, const struct splice *s)
{
	affine(chat, e, s->shift, true, 0, s);
}

void k_splice_divide(act_t *y, const act_t *x, const struct splice *s)
{
	affine(y, x, NULL, true, 0, s);
}

void k_splice_multiply(act_t *y, const act_t *x, double beta, const struct splice *s)
{
	affine(y, x, NULL, false, beta, s);
}

/* ---- gradients of scale and shift -------------------------------------------------- */

/* What row i adds: du - dchat / sigma, and d softplus(scale) (du c - dchat chat / sigma) */
template <int W> struct grad_row {
	const real *c, *du, *chat, *dchat;
	const float *scale;
	int r;

	__device__ __forceinline__ void operator()(float (&v)[2][W], int i, int j) const
	{
		float x[W], dx[W], y[W], dy[W];
		long at = (long)i * r + j;

		row_load<W>(x, c + at);
		row_load<W>(dx, du + at);
		row_load<W>(y, chat + at);
		row_load<W>(dy, dchat + at);
#pragma unroll
		for (int e = 0; e < W; e++) {
			float out = dy[e] / softplus(scale[j + e]);

			v[0][e] = dx[e] - out;
			v[1][e] = (dx[e] * x[e] - out * y[e]) / (1 + expf(-scale[j + e]));
		}
	}
};

void k_splice_grad(grad_t *dscale, grad_t *dshift, const act_t *c, const act_t *du,
		   const act_t *chat, const act_t *dchat, const struct splice *s)
{
	const real *x = real_of(c), *dx = real_of(du), *y = real_of(chat), *dy = real_of(dchat);
	const struct sum_to<2> to = { { dshift, dscale } };

	if (row_wide(x, s->r) && row_wide(dx, s->r) && row_wide(y, s->r) && row_wide(dy, s->r))
		sum_columns<2, WIDE>(to, grad_row<WIDE>{ x, dx, y, dy, s->scale, s->r }, s->n, s->r);
	else
		sum_columns<2, 1>(to, grad_row<1>{ x, dx, y, dy, s->scale, s->r }, s->n, s->r);
}

/* ---- reconstruction error ---------------------------------------------------------- */

/* |c - chat|^2 over |c|^2 + TINY of a row, by a warp; @size: the latter */
static __device__ float row_error(const real *c, const real *chat, int r, float &size)
{
	float off = 0;

	size = 0;
	for (int j = threadIdx.x % 32; j < r; j += 32) {
		float x = get(c + j), d = x - get(chat + j);

		off += d * d;
		size += x * x;
	}
	size = warp_sum(size) + TINY;
	return warp_sum(off) / size;
}

/* part[block] = sum over the block's rows, warps in order */
static __global__ void __launch_bounds__(THREADS)
error_kernel(double *part, const real *c, const real *chat, int n, int r, int rows)
{
	__shared__ double all[THREADS / 32];
	int first = blockIdx.x * rows, warp = threadIdx.x / 32;
	double sum = 0;
	float size;

	for (long i = first + warp; i < min(first + rows, n); i += THREADS / 32)
		sum += row_error(c + i * r, chat + i * r, r, size);
	if (threadIdx.x % 32 == 0)
		all[warp] = sum;
	__syncthreads();
	for (int w = 1; !threadIdx.x && w < THREADS / 32; w++)
		sum += all[w];
	if (!threadIdx.x)
		part[blockIdx.x] = sum;
}

void k_splice_error(double *dst, double beta, const act_t *c, const act_t *chat, double weight,
		    int n, int r)
{
	int rows = MAX(div_up(n, PARTS), THREADS / 32), parts = div_up(n, rows);
	double *part = (double *)workspace_part(parts * sizeof(*part));

	error_kernel<<<parts, THREADS, 0, cuda_stream()>>>(part, real_of(c), real_of(chat), n, r,
							   rows);
	CUDA_LAUNCHED();
	sum_doubles(dst, part, parts, weight, beta);
}

static __global__ void __launch_bounds__(THREADS)
error_bwd_kernel(real *dc, real *dchat, const real *c, const real *chat, float weight, int n, int r)
{
	long i = (long)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
	float size, error, one, all;

	if (i >= n)
		return;
	error = row_error(c + i * r, chat + i * r, r, size);
	one = 2 * weight / size;
	all = one * error;
	for (int j = threadIdx.x % 32; j < r; j += 32) {
		float x = get(c + i * r + j), d = one * (x - get(chat + i * r + j));

		put(dc + i * r + j, d - all * x);
		put(dchat + i * r + j, get(dchat + i * r + j) - d);
	}
}

void k_splice_error_bwd(act_t *dc, act_t *dchat, const act_t *c, const act_t *chat, double weight,
			int n, int r)
{
	error_bwd_kernel<<<div_up(n, THREADS / 32), THREADS, 0, cuda_stream()>>>(
		real_of(dc), real_of(dchat), real_of(c), real_of(chat), weight, n, r);
	CUDA_LAUNCHED();
}
