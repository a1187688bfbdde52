// SPDX-License-Identifier: MIT
/*
 * Element-wise work.
 */
#include "act.cuh"
#include "each.cuh"
#include "kernels.h"

struct gelu_fwd {
	real *h;
	const real *pre;

	template <int W> __device__ void at(size_t i) const
	{
		float x[W];

		row_load<W>(x, pre + i);
#pragma unroll
		for (int e = 0; e < W; e++)
			x[e] = gelu(x[e]);
		row_store<W>(h + i, x);
	}
};

void k_gelu_fwd(act_t *h, const act_t *pre, size_t n)
{
	each(gelu_fwd{ real_of(h), real_of(pre) }, n, row_wide(h, 0) && row_wide(pre, 0));
}

struct gelu_bwd {
	real *dpre;
	const real *pre, *dh;

	template <int W> __device__ void at(size_t i) const
	{
		float x[W], d[W];

		row_load<W>(x, pre + i);
		row_load<W>(d, dh + i);
#pragma unroll
		for (int e = 0; e < W; e++)
			d[e] *= gelu_grad(x[e]);
		row_store<W>(dpre + i, d);
	}
};

void k_gelu_bwd(act_t *dpre, const act_t *pre, const act_t *dh, size_t n)
{
	each(gelu_bwd{ real_of(dpre), real_of(pre), real_of(dh) }, n,
	     row_wide(dpre, 0) && row_wide(pre, 0) && row_wide(dh, 0));
}

/* Rows of whole groups of W elements. */
struct axpby {
	real *y;
	const real *x;
	long ldy, ldx;
	int c;
	float alpha, beta;

	template <int W> __device__ void at(size_t i) const
	{
		size_t row = i / c, j = i % c;
		float a[W], b[W] = {};

		row_load<W>(a, x + row * ldx + j);
		if (beta != 0)
			row_load<W>(b, y + row * ldy + j);
#pragma unroll
		for (int e = 0; e < W; e++)
			a[e] = alpha * a[e] + beta * b[e];
		row_store<W>(y + row * ldy + j, a);
	}
};

void k_axpby(act_t *y, long ldy, const act_t *x, long ldx, int n, int c, double alpha, double beta)
{
	each(axpby{ real_of(y), real_of(x), ldy, ldx, c, (float)alpha, (float)beta },
	     (size_t)n * c, row_wide(y, ldy) && row_wide(x, ldx) && c % WIDE == 0);
}

struct sum_grad {
	float *older;
	const float *newer;

	template <int W> __device__ void at(size_t i) const
	{
		float a[W], b[W];

		row_load<W>(a, older + i);
		row_load<W>(b, newer + i);
#pragma unroll
		for (int e = 0; e < W; e++)
			a[e] += b[e];
		row_store<W>(older + i, a);
	}
};

void k_sum_grad(grad_t *older, const grad_t *newer, size_t n)
{
	each(sum_grad{ older, newer }, n, row_wide(older, 0) && row_wide(newer, 0));
}

/* Between float and real, either way. */
template <class TO, class FROM> struct convert {
	TO *dst;
	const FROM *src;

	template <int W> __device__ void at(size_t i) const
	{
		float x[W];

		row_load<W>(x, src + i);
		row_store<W>(dst + i, x);
	}
};

void k_cast(param_t *dst, const grad_t *src, size_t n)
{
	each(convert<real, float>{ real_of(dst), src }, n, row_wide(dst, 0) && row_wide(src, 0));
}

void k_widen(acc_t *dst, const act_t *src, size_t n)
{
	each(convert<float, real>{ dst, real_of(src) }, n, row_wide(dst, 0) && row_wide(src, 0));
}
