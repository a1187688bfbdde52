// SPDX-License-Identifier: MIT
/*
 * Matrix products through the CBLAS interface.
 */
#include <cblas.h>

#include "blas.h"

void blas_gemm_acc(bool ta, bool tb, int m, int n, int k, double alpha, const acc_t *a, long lda,
		   const acc_t *b, long ldb, double beta, acc_t *c, long ldc)
{
	const int opa = ta ? CblasTrans : CblasNoTrans;
	const int opb = tb ? CblasTrans : CblasNoTrans;

	if (sizeof(acc_t) == sizeof(double))
		cblas_dgemm(CblasRowMajor, opa, opb, m, n, k, alpha, (const void *)a, lda,
			    (const void *)b, ldb, beta, (void *)c, ldc);
	else
		cblas_sgemm(CblasRowMajor, opa, opb, m, n, k, (float)alpha, (const void *)a, lda,
			    (const void *)b, ldb, (float)beta, (void *)c, ldc);
}
