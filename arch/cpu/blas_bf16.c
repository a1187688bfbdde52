// SPDX-License-Identifier: MIT
/*
 * Products of bf16, summed in float: by the library where it and the processor can,
 * else widened block by block and multiplied as float.
 */
#include "blas.h"
#include "util.h"

enum {
	PANEL_M = 256,		/* rows of a widened at a time */
	PANEL_N = 512,		/* columns of b */
	PANEL_K = 256,
};

/* Each thread's widened operands. */
static _Thread_local struct {
	acc_t a[PANEL_M * PANEL_K] TENSOR;
	acc_t b[PANEL_K * PANEL_N] TENSOR;
} wide;

static void widen(acc_t *to, const act_t *x, long ld, int rows, int cols)
{
	for (int i = 0; i < rows; i++)
#pragma omp simd
		for (int j = 0; j < cols; j++)
			to[(long)i * cols + j] = load(x[i * ld + j]);
}

void blas_gemm_widened(bool ta, bool tb, int m, int n, int k, double alpha, const act_t *a,
		       long lda, const act_t *b, long ldb, double beta, acc_t *c, long ldc)
{
	for (int j = 0; j < n; j += PANEL_N)
		for (int l = 0; l < MAX(k, 1); l += PANEL_K) {
			int nb = MIN(PANEL_N, n - j), kb = MIN(PANEL_K, k - l);

			widen(wide.b, b + (tb ? j * ldb + l : l * ldb + j), ldb, tb ? nb : kb,
			      tb ? kb : nb);
			for (int i = 0; i < m; i += PANEL_M) {
				int mb = MIN(PANEL_M, m - i);

				widen(wide.a, a + (ta ? l * lda + i : i * lda + l), lda,
				      ta ? kb : mb, ta ? mb : kb);
				blas_gemm_acc(ta, tb, mb, nb, kb, alpha, wide.a, ta ? mb : kb,
					      wide.b, tb ? kb : nb, l ? 1 : beta,
					      c + i * ldc + j, ldc);
			}
		}
}

void blas_gemm_narrow(bool ta, bool tb, int m, int n, int k, double alpha, const act_t *a,
		      long lda, const act_t *b, long ldb, double beta, acc_t *c, long ldc)
{
	if (IS_ENABLED(CONFIG_BLAS_ONEDNN) && onednn_way())
		onednn_gemm_bf16(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
	else
		blas_gemm_widened(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

const char *blas_narrow_way(void)
{
	const char *way = IS_ENABLED(CONFIG_BLAS_ONEDNN) ? onednn_way() : NULL;

	if (way)
		return way;
	return IS_ENABLED(CONFIG_BLAS_ONEDNN) ?
		", bf16 as float: no avx512_bf16 or AMX" :
		", bf16 as float: see BLAS_ONEDNN";
}
