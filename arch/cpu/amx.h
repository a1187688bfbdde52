/* SPDX-License-Identifier: MIT */
/**
 * DOC: a few rows times a weight by matrix tiles (AMX)
 *
 * thin_gemm() of bf16 where compiler, processor and kernel have AMX: sixteen rows of the
 * weight are one operand as they lie in memory, so that a product takes no longer than
 * reading it.
 */
#ifndef TENON_CPU_AMX_H
#define TENON_CPU_AMX_H

#include "real.h"

/* Is this bf16, and was the compiler told of a processor that has it? */
#if defined(CONFIG_REAL_BF16) && defined(__AMX_BF16__)
/** amx_ready() - whether the products below may be called; asks the kernel once */
bool amx_ready(void);

/** amx_left() - elements of acc_t that amx_pack() fills */
long amx_left(int m, int k);

/**
 * amx_pack() - the left operand as amx_gemm() reads it
 * @m: rows of a, 1..THIN_ROWS
 * @k: its columns
 * @a: row stride @lda
 * @to: amx_left(m, k) elements
 */
void amx_pack(int m, int k, const act_t *a, long lda, acc_t *to);

/**
 * amx_gemm() - c = alpha a b^T + beta c on the calling thread, b read once
 * @m: rows of a
 * @n: rows of b
 * @k: columns of both
 * @a: of amx_pack()
 * @b: row stride @ldb
 * @beta: 0 overwrites
 * @c: row stride @ldc
 *
 * An element is one sum over pairs of k in ascending order, the products of even and those
 * of odd columns of a step apart and then added; numbers below 2^-126 count as 0. The same
 * bits at any @m and @n.
 */
void amx_gemm(int m, int n, int k, acc_t alpha, const acc_t *a, const act_t *b, long ldb,
	      acc_t beta, acc_t *c, long ldc);

#else
static inline bool amx_ready(void)
{
	return false;
}

static inline long amx_left(int m, int k)
{
	(void)m, (void)k;
	return 0;
}

static inline void amx_pack(int m, int k, const act_t *a, long lda, acc_t *to)
{
	(void)m, (void)k, (void)a, (void)lda, (void)to;
}

static inline void amx_gemm(int m, int n, int k, acc_t alpha, const acc_t *a, const act_t *b,
			    long ldb, acc_t beta, acc_t *c, long ldc)
{
	(void)m, (void)n, (void)k, (void)alpha, (void)a, (void)b, (void)ldb, (void)beta, (void)c;
	(void)ldc;
}
#endif

#endif
