/* SPDX-License-Identifier: MIT */
/**
 * DOC: a few rows times a weight
 *
 * Packing the weight for a BLAS call would cost more than the product.
 */
#ifndef TENON_CPU_THIN_H
#define TENON_CPU_THIN_H

#include "real.h"

enum { THIN_ROWS = 8 };		/* most rows; beyond them packing pays */

/**
 * thin_gemm() - c = alpha a b^T + beta c on the calling thread, b read once
 * @m: rows of a, 1..THIN_ROWS
 * @n: rows of b
 * @k: columns of both
 * @lda, @ldb, @ldc: row strides
 * @beta: 0 overwrites
 *
 * An element is a function of its own row and column alone: the same bits at any @m.
 */
void thin_gemm(int m, int n, int k, acc_t alpha, const acc_t *a, long lda, const act_t *b,
	       long ldb, acc_t beta, acc_t *c, long ldc);

#endif
