/* SPDX-License-Identifier: MIT */
/*
 * The products of a linear layer y = x w^T + bias, w [out][in]. Row strides are those
 * of whole rows unless a name says otherwise.
 */
#ifndef TENON_LINEAR_H
#define TENON_LINEAR_H

#include <assert.h>

#include "kernels.h"
#include "dims.h"

/* rows of a product are an int; those of a product of all heads are BT * H */
static_assert((int64_t)BT * H <= INT32_MAX, "lower CONFIG_BATCH_SIZE, CONFIG_BLOCK_SIZE "
	      "or CONFIG_N_HEAD: their product must stay below 2^31");

/* A bias or its gradient, where linear layers have one. */
#define WITH_BIAS(x) (BIAS ? (x) : NULL)

/* y[rows][out] = alpha x[rows][in] w^T + beta y */
static inline void linear_fwd(act_t *y, const void *x, const void *w, int rows, int out, int in,
			      double alpha, double beta)
{
	k_gemm(&(struct gemm){ .m = rows, .n = out, .k = in, .tb = true, .a = x, .lda = in,
			       .b = w, .ldb = in, .c = y, .ldc = out, .alpha = alpha,
			       .beta = beta });
}

/* y[rows][out] = x[rows][in] w^T + bias[out] */
static inline void linear_bias_fwd(act_t *y, const void *x, const void *w, const param_t *bias,
				   int rows, int out, int in)
{
	k_gemm(&(struct gemm){ .m = rows, .n = out, .k = in, .tb = true, .a = x, .lda = in,
			       .b = w, .ldb = in, .c = y, .ldc = out, .alpha = 1,
			       .ep = GEMM_BIAS, .bias = WITH_BIAS(bias) });
}

/* h = gelu(pre), pre = x[rows][in] w^T + bias; both [rows][out] */
static inline void linear_gelu_fwd(act_t *h, act_t *pre, const void *x, const void *w,
				   const param_t *bias, int rows, int out, int in)
{
	k_gemm(&(struct gemm){ .m = rows, .n = out, .k = in, .tb = true, .a = x, .lda = in,
			       .b = w, .ldb = in, .c = h, .ldc = out, .alpha = 1,
			       .ep = GEMM_BIAS_GELU, .bias = WITH_BIAS(bias), .aux = pre,
			       .ldaux = out });
}

/* dpre[rows][in] = (dy[rows][out] w) gelu'(pre) */
static inline void linear_dgelu(act_t *dpre, const act_t *pre, const void *dy, const void *w,
				int rows, int out, int in)
{
	k_gemm(&(struct gemm){ .m = rows, .n = in, .k = out, .a = dy, .lda = out, .b = w,
			       .ldb = in, .c = dpre, .ldc = in, .alpha = 1, .ep = GEMM_DGELU,
			       .aux = (act_t *)pre, .ldaux = in });
}

/* dx[rows][in] = alpha dy[rows][out] w + beta dx */
static inline void linear_dx(act_t *dx, const void *dy, const void *w, int rows, int out, int in,
			     double alpha, double beta)
{
	k_gemm(&(struct gemm){ .m = rows, .n = in, .k = out, .a = dy, .lda = out, .b = w,
			       .ldb = in, .c = dx, .ldc = in, .alpha = alpha, .beta = beta });
}

/* dw[out][in] = alpha dy[rows][out]^T x[rows][in] + beta dw; db[out], or NULL, from dy */
static inline void linear_dw(grad_t *dw, grad_t *db, const void *dy, const void *x, int rows,
			     int out, int in, double alpha, double beta)
{
	k_gemm_grad(&(struct gemm){ .m = out, .n = in, .k = rows, .ta = true, .a = dy,
				    .lda = out, .b = x, .ldb = in, .c = dw, .ldc = in,
				    .alpha = alpha, .beta = beta, .db = WITH_BIAS(db) });
}

#endif
