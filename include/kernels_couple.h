/* SPDX-License-Identifier: MIT */
/**
 * DOC: one matrix in two directions, or given by a few factors
 *
 * The rules of kernels.h hold.
 */
#ifndef TENON_KERNELS_COUPLE_H
#define TENON_KERNELS_COUPLE_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * struct couple - a matrix between @fdim and @l elements, @l divides @fdim: element f
 * belongs to head f heads / fdim and meets element f mod l with factor * p[head]
 * @fdim: wide side
 * @l: narrow side
 * @heads: factors
 * @factor: of all of them
 * @f_stride: elements of the matrix from f to f + 1
 * @l_stride: from j to j + 1
 */
struct couple {
	int fdim, l, heads;
	double factor;
	long f_stride, l_stride;
};

/** k_couple_fill() - w of @c from p[heads]; everything off the pattern gets 0 */
void k_couple_fill(const struct couple *c, param_t *w, const param_t *p);

/** k_couple_grad() - dp[heads] from dw, laid out as w, in a fixed order */
void k_couple_grad(const struct couple *c, grad_t *dp, const grad_t *dw);

/**
 * k_transpose() - dst[j][i] = src[i][j]
 * @dst: [cols][rows], row stride @ldd
 * @src: [rows][cols], row stride @lds
 */
void k_transpose(param_t *dst, long ldd, const param_t *src, long lds, int rows, int cols);

/** k_transpose_grad() - dst[j][i] = src[i][j] + beta dst[j][i]; beta 0 overwrites */
void k_transpose_grad(grad_t *dst, long ldd, const grad_t *src, long lds, int rows, int cols,
		      double beta);

#ifdef __cplusplus
}
#endif

#endif
