/* SPDX-License-Identifier: MIT */
/**
 * DOC: the affine maps around a learned bottleneck
 *
 * The rules of kernels.h hold. With sigma = softplus(scale), element by element of a row of
 * r, a latent c enters the bottleneck as u = c sigma + shift and leaves it, through matrix
 * products, as ĉ = (e - shift) / sigma.
 */
#ifndef TENON_KERNELS_SPLICE_H
#define TENON_KERNELS_SPLICE_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * struct splice - the map of one latent
 * @n: rows
 * @r: width
 * @scale: [r]
 * @shift: [r]
 */
struct splice {
	int n, r;
	const acc_t *scale, *shift;
};

/** k_splice_in() - u[n][r] = c sigma + shift */
void k_splice_in(act_t *u, const act_t *c, const struct splice *s);

/** k_splice_out() - ĉ[n][r] = (e - shift) / sigma; may run in place */
void k_splice_out(act_t *chat, const act_t *e, const struct splice *s);

/** k_splice_divide() - y[n][r] = x / sigma; may run in place */
void k_splice_divide(act_t *y, const act_t *x, const struct splice *s);

/** k_splice_multiply() - y[n][r] = sigma x + beta y; 0 overwrites */
void k_splice_multiply(act_t *y, const act_t *x, double beta, const struct splice *s);

/**
 * k_splice_grad() - gradients of scale and shift, summed over rows in a fixed order
 * @dscale: [r]
 * @dshift: [r]
 * @c: [n][r] what went in
 * @du: [n][r]
 * @chat: [n][r] what came out
 * @dchat: [n][r]
 */
void k_splice_grad(grad_t *dscale, grad_t *dshift, const act_t *c, const act_t *du,
		   const act_t *chat, const act_t *dchat, const struct splice *s);

/**
 * k_splice_error() - *dst = weight sum over rows of |c - ĉ|^2 / (|c|^2 + 1e-12) + beta *dst
 * @dst: device
 *
 * Rows in double, in a fixed order.
 */
void k_splice_error(double *dst, double beta, const act_t *c, const act_t *chat, double weight,
		    int n, int r);

/** k_splice_error_bwd() - its gradients: dc is overwritten, dchat added to */
void k_splice_error_bwd(act_t *dc, act_t *dchat, const act_t *c, const act_t *chat, double weight,
			int n, int r);

#ifdef __cplusplus
}
#endif

#endif
