/* SPDX-License-Identifier: MIT */
/**
 * DOC: a few rows times a weight
 *
 * Packing the weight for a BLAS call would cost more than the product.
 */
#ifndef TENON_CPU_THIN_H
#define TENON_CPU_THIN_H

#include "tile.h"

enum { THIN_ROWS = 8 };		/* most rows; beyond them packing pays */

/* Does the processor multiply pairs of bf16? Else the left operand is widened before. */
#if defined(CONFIG_REAL_BF16) && defined(__AVX512BF16__)
#define THIN_PAIRS 1
typedef act_t thin_t;	/* an element of the left operand */
#else
#define THIN_PAIRS 0
typedef acc_t thin_t;
#endif

/** thin_left() - elements of acc_t that thin_widen() may fill */
static inline long thin_left(int rows, int k)
{
	return sizeof(thin_t) == sizeof(act_t) ? 0 : tile_left(rows, k);
}

/** thin_widen() - a left operand as thin_gemm() reads it: tile_widen(), where that is needed */
static inline const thin_t *thin_widen(const act_t *a, long *ld, int rows, int cols, acc_t *buf)
{
	if (sizeof(thin_t) == sizeof(act_t))
		return (const thin_t *)a;
	return (const thin_t *)tile_widen(a, ld, rows, cols, buf);
}

/**
 * thin_gemm() - c = alpha a b^T + beta c on the calling thread, b read once
 * @m: rows of a, 1..THIN_ROWS
 * @n: rows of b
 * @k: columns of both
 * @lda, @ldb, @ldc: row strides
 * @beta: 0 overwrites
 *
 * An element is a function of its own row and column alone: the same bits at any @m. With
 * avx512_bf16 a chain goes over pairs of columns, and numbers below 2^-126 count as 0.
 */
void thin_gemm(int m, int n, int k, acc_t alpha, const thin_t *a, long lda, const act_t *b,
	       long ldb, acc_t beta, acc_t *c, long ldc);

#endif
