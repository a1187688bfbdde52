/* SPDX-License-Identifier: MIT */
/**
 * DOC: the library behind the matrix products
 *
 * One of blas_openblas.c, blas_blis.c, blas_onednn.c and gemm_builtin.c is linked; with
 * REAL_BF16 blas_bf16.c too.
 */
#ifndef TENON_CPU_BLAS_H
#define TENON_CPU_BLAS_H

#include "real.h"

/** blas_init() - one thread inside every call, from now on */
void blas_init(void);

/** blas_name() - library, version and the kernels it chose, static storage */
const char *blas_name(void);

/** blas_threads() - threads that may be inside calls at the same time, 0: any number */
int blas_threads(void);

/** blas_thread_bytes() - memory that a call takes for its thread, and keeps */
size_t blas_thread_bytes(void);

/**
 * blas_gemm_acc() - c = alpha op(a) op(b) + beta c on the calling thread
 * @ta: false: a is [m][k]; true: a is [k][m]
 * @tb: false: b is [k][n]; true: b is [n][k]
 * @m: rows of c
 * @n: columns of c
 * @k: inner dimension
 * @alpha: factor
 * @a: left matrix
 * @lda: its row stride
 * @b: right matrix
 * @ldb: its row stride
 * @beta: 0 overwrites, whatever c holds
 * @c: [m][n]
 * @ldc: its row stride
 *
 * To be called inside an OpenMP block, from any number of threads at once. The
 * bits of the result depend on the arguments alone.
 */
void blas_gemm_acc(bool ta, bool tb, int m, int n, int k, double alpha, const acc_t *a, long lda,
		   const acc_t *b, long ldb, double beta, acc_t *c, long ldc);

/** blas_gemm_narrow() - the same with bf16 on the right side, summed in float */
void blas_gemm_narrow(bool ta, bool tb, int m, int n, int k, double alpha, const act_t *a,
		      long lda, const act_t *b, long ldb, double beta, acc_t *c, long ldc);

/** blas_gemm_widened() - the same as float, where the library or the processor has no bf16 */
void blas_gemm_widened(bool ta, bool tb, int m, int n, int k, double alpha, const act_t *a,
		       long lda, const act_t *b, long ldb, double beta, acc_t *c, long ldc);

/** blas_narrow_way() - how blas_gemm_narrow() multiplies here, to go behind blas_name() */
const char *blas_narrow_way(void);

/** onednn_way() - what oneDNN multiplies bf16 with on this processor, or NULL */
const char *onednn_way(void);

/** onednn_gemm_bf16() - blas_gemm_narrow() where there is such a way */
void onednn_gemm_bf16(bool ta, bool tb, int m, int n, int k, double alpha, const act_t *a,
		      long lda, const act_t *b, long ldb, double beta, acc_t *c, long ldc);

/** blas_gemm() - the product of activations or weights, whatever they are */
static inline void blas_gemm(bool ta, bool tb, int m, int n, int k, double alpha, const act_t *a,
			     long lda, const act_t *b, long ldb, double beta, acc_t *c, long ldc)
{
	if (NARROW)
		blas_gemm_narrow(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
	else
		blas_gemm_acc(ta, tb, m, n, k, alpha, (const acc_t *)a, lda, (const acc_t *)b,
			      ldb, beta, c, ldc);
}

#endif
