/* SPDX-License-Identifier: MIT */
/*
 * y = (silu(x gate^T) * x up^T) down^T of any width, without biases: the products that
 * swiglu and the shared experts of moe have in common.
 */
#ifndef TENON_SWIGLU_H
#define TENON_SWIGLU_H

#include "../linear.h"
#include "kernels_swiglu.h"
#include "mixer.h"

/* weights of one SwiGLU, [width][C], [width][C], [C][width] */
struct swiglu_weights {
	const param_t *gate, *up, *down;
};

/* their gradients */
struct swiglu_grads {
	grad_t *gate, *up, *down;
};

/* Products that make gates and values: one where no padding parts the weights. */
static inline int swiglu_parts(const struct swiglu_weights *w, int width)
{
	return w->up == w->gate + (size_t)width * C ? 1 : 2;
}

/* gu[n][2 width] = x [gate ; up]^T */
static inline void swiglu_gates(act_t *gu, const act_t *x, const struct swiglu_weights *w, int n,
				int width)
{
	int parts = swiglu_parts(w, width);

	for (int i = 0; i < parts; i++)
		k_gemm(&(struct gemm){
			.m = n, .n = 2 * width / parts, .k = C, .tb = true, .a = x, .lda = C,
			.b = i ? w->up : w->gate, .ldb = C, .c = gu + i * width,
			.ldc = 2L * width, .alpha = 1 });
}

/* y[n][C] from x; gu [n][2 width] and h [n][width] are left */
static inline void swiglu_fwd(act_t *y, act_t *gu, act_t *h, const act_t *x,
			      const struct swiglu_weights *w, int n, int width)
{
	swiglu_gates(gu, x, w, n, width);
	k_swiglu_fwd(h, gu, n, width);
	linear_fwd(y, h, w->down, n, C, width, 1, 0);
}

/*
 * dx[n][C] = or += , and the weights' gradients, from dy
 * @dgu: [n][2 width] scratch
 * @dh: [n][width] scratch
 */
static inline void swiglu_bwd(act_t *dx, double beta, const struct swiglu_grads *dw, const act_t *dy,
			      const act_t *gu, const act_t *h, act_t *dgu, act_t *dh, const act_t *x,
			      const struct swiglu_weights *w, int n, int width)
{
	int parts = swiglu_parts(w, width);

	linear_dw(dw->down, NULL, dy, h, n, C, width, 1, 0);
	linear_dx(dh, dy, w->down, n, C, width, 1, 0);
	k_swiglu_bwd(dgu, gu, dh, n, width);
	for (int i = 0; i < parts; i++) {
		const act_t *d = dgu + i * width;

		k_gemm_grad(&(struct gemm){
			.m = 2 * width / parts, .n = C, .k = n, .ta = true, .a = d, .lda = 2L * width, .b = x,
			.ldb = C, .c = i ? dw->up : dw->gate, .ldc = C, .alpha = 1 });
		k_gemm(&(struct gemm){
			.m = n, .n = C, .k = 2 * width / parts, .a = d, .lda = 2L * width,
			.b = i ? w->up : w->gate, .ldb = C, .c = dx, .ldc = C, .alpha = 1,
			.beta = i ? 1 : beta });
	}
}

/* Products of @n rows. */
static inline void swiglu_work(struct work *w, int n, int width, bool backward)
{
	work_linear(w, n, 2 * width, C, backward);
	work_linear(w, n, C, width, backward);
}

#endif
