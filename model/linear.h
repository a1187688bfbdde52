/* SPDX-License-Identifier: MIT */
/*
 * The products of a linear layer y = x w^T, w [out][in], their per-head forms,
 * and the counting of operations. Rows are contiguous.
 */
#ifndef TENON_LINEAR_H
#define TENON_LINEAR_H

#include <assert.h>

#include "kernels.h"
#include "types.h"

/* rows of a product are an int; those of a product of all heads are BT * H */
static_assert((int64_t)BT * H <= INT32_MAX, "lower CONFIG_BATCH_SIZE, CONFIG_BLOCK_SIZE "
	      "or CONFIG_N_HEAD: their product must stay below 2^31");

/* y[rows][out] = alpha x[rows][in] w^T + beta y */
static inline void linear_fwd(void *y, const void *x, const void *w, int rows, int out, int in,
			      double alpha, double beta)
{
	k_gemm(&(struct gemm){ .m = rows, .n = out, .k = in, .tb = true, .a = x, .lda = in,
			       .b = w, .ldb = in, .c = y, .ldc = out, .alpha = alpha,
			       .beta = beta });
}

/* y[rows][out] = x[rows][in] w^T + bias[out], row stride of y @ldy */
static inline void linear_bias_fwd(void *y, long ldy, const void *x, const void *w,
				   const param_t *bias, int rows, int out, int in)
{
	k_gemm(&(struct gemm){ .m = rows, .n = out, .k = in, .tb = true, .a = x, .lda = in,
			       .b = w, .ldb = in, .c = y, .ldc = ldy, .alpha = 1,
			       .ep = GEMM_BIAS, .bias = bias });
}

/* h = gelu(pre), pre = x[rows][in] w^T + bias; both [rows][out] */
static inline void linear_gelu_fwd(act_t *h, act_t *pre, const void *x, const void *w,
				   const param_t *bias, int rows, int out, int in)
{
	k_gemm(&(struct gemm){ .m = rows, .n = out, .k = in, .tb = true, .a = x, .lda = in,
			       .b = w, .ldb = in, .c = h, .ldc = out, .alpha = 1,
			       .ep = GEMM_BIAS_GELU, .bias = bias, .aux = pre });
}

/* dpre[rows][in] = (dy[rows][out] w) gelu'(pre) */
static inline void linear_dgelu(act_t *dpre, const act_t *pre, const void *dy, const void *w,
				int rows, int out, int in)
{
	k_gemm(&(struct gemm){ .m = rows, .n = in, .k = out, .a = dy, .lda = out, .b = w,
			       .ldb = in, .c = dpre, .ldc = in, .alpha = 1, .ep = GEMM_DGELU,
			       .aux = (act_t *)pre });
}

/* dx[rows][in] = alpha dy[rows][out] w + beta dx */
static inline void linear_dx(void *dx, const void *dy, const void *w, int rows, int out, int in,
			     double alpha, double beta)
{
	k_gemm(&(struct gemm){ .m = rows, .n = in, .k = out, .a = dy, .lda = out, .b = w,
			       .ldb = in, .c = dx, .ldc = in, .alpha = alpha, .beta = beta });
}

/* dw[out][in] = alpha dy[rows][out]^T x[rows][in] + beta dw */
static inline void linear_dw(grad_t *dw, const void *dy, const void *x, int rows, int out,
			     int in, double alpha, double beta)
{
	k_gemm_grad(&(struct gemm){ .m = out, .n = in, .k = rows, .ta = true, .a = dy,
				    .lda = out, .b = x, .ldb = in, .c = dw, .ldc = in,
				    .alpha = alpha, .beta = beta });
}

/*
 * Per-head products y_h = x_h w_h, w_h [in][out]; buffers are [rows][H][width].
 * @heads: H, or 0 where one w serves all heads: one product of rows * H rows.
 */
static inline void heads_fwd(void *y, const void *x, const void *w, int heads, int rows, int in,
			     int out)
{
	struct gemm g = { .m = rows, .n = out, .k = in, .a = x, .lda = (long)H * in, .sa = in,
			  .b = w, .ldb = out, .sb = (long)in * out, .c = y,
			  .ldc = (long)H * out, .sc = out, .alpha = 1, .batch = heads };

	if (!heads) {
		g.m = rows * H;
		g.lda = in;
		g.ldc = out;
	}
	k_gemm(&g);
}

/* dx_h = dy_h w_h^T */
static inline void heads_dx(void *dx, const void *dy, const void *w, int heads, int rows, int in,
			    int out)
{
	struct gemm g = { .m = rows, .n = in, .k = out, .tb = true, .a = dy,
			  .lda = (long)H * out, .sa = out, .b = w, .ldb = out,
			  .sb = (long)in * out, .c = dx, .ldc = (long)H * in, .sc = in,
			  .alpha = 1, .batch = heads };

	if (!heads) {
		g.m = rows * H;
		g.lda = out;
		g.ldc = in;
	}
	k_gemm(&g);
}

/* dw_h = x_h^T dy_h */
static inline void heads_dw(grad_t *dw, const void *dy, const void *x, int heads, int rows, int in,
			    int out)
{
	struct gemm g = { .m = in, .n = out, .k = rows, .ta = true, .a = x,
			  .lda = (long)H * in, .sa = in, .b = dy, .ldb = (long)H * out,
			  .sb = out, .c = dw, .ldc = out, .sc = (long)in * out, .alpha = 1,
			  .batch = heads };

	if (!heads) {
		g.k = rows * H;
		g.lda = in;
		g.ldb = out;
	}
	k_gemm_grad(&g);
}

/* operations of any one of the three; a multiply-add is 2 */
static inline double linear_flops(double rows, double out, double in)
{
	return 2 * rows * out * in;
}

/*
 * causal_pairs() - pairs u <= t of b sequences with t - u < window
 *
 * window = t: all that causal attention visits; window = k: entries of top-k rows.
 */
static inline double causal_pairs(int b, int t, int window)
{
	double w = window < t ? window : t;

	return b * (w * (w + 1) / 2 + (t - w) * w);
}

#endif
