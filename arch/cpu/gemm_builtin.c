// SPDX-License-Identifier: MIT
/*
 * Matrix products without a library: both operands are packed into panels that fit
 * the caches, and a tile of the result is kept in registers (Goto and van de Geijn
 * 2008, "Anatomy of high-performance matrix multiplication").
 */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "blas.h"
#include "util.h"

typedef acc_t vec __attribute__((vector_size(__BIGGEST_ALIGNMENT__)));

enum {
	LANES = sizeof(vec) / sizeof(acc_t),
	TILE_M = 6,		/* with two vectors: 12 sums in 16 registers */
	TILE_N = 2 * LANES,
	PANEL_M = 16 * TILE_M,	/* rows of a packed: 96 KiB of float, second cache */
	PANEL_N = 512,		/* columns of b packed */
	PANEL_K = 256,		/* a panel of b is 32 KiB of float at most, first cache */
};

static_assert(PANEL_N % TILE_N == 0, "whole tiles");

/* Each thread's packed operands. */
static _Thread_local struct {
	acc_t a[PANEL_M * PANEL_K] TENSOR;
	acc_t b[PANEL_K * PANEL_N] TENSOR;
} pack;

void blas_init(void)
{
}

int blas_threads(void)
{
	return 0;
}

/* what is packed lies in the thread's own storage */
size_t blas_thread_bytes(void)
{
	return 0;
}

const char *blas_name(void)
{
	static char name[64];

	if (!name[0])
		snprintf(name, sizeof(name), "built-in matrix products, %d lanes", LANES);
	return name;
}

/*
 * Panels of @width lines of x, element-wise transposed to [panel][k][width] and
 * padded with zeros. Line i, inner index l is x[i * line + l * inner].
 */
static void pack_panels(acc_t *to, const acc_t *x, long line, long inner, int lines, int k,
			int width)
{
	for (int i0 = 0; i0 < lines; i0 += width, to += (long)k * width) {
		int n = MIN(width, lines - i0);

		if (n < width)
			memset(to, 0, (size_t)k * width * sizeof(*to));
		if (inner == 1)
			for (int i = 0; i < n; i++)
				for (int l = 0; l < k; l++)
					to[l * width + i] = x[(i0 + i) * line + l];
		else
			for (int l = 0; l < k; l++)
				for (int i = 0; i < n; i++)
					to[l * width + i] = x[(i0 + i) * line + l * inner];
	}
}

/* One tile: sum over k of a column of a panel times a row of a panel. */
static inline void tile_sum(acc_t out[TILE_M][TILE_N], const acc_t *a, const acc_t *b, int k)
{
	vec sum[TILE_M][2] = { 0 };

	for (int l = 0; l < k; l++, a += TILE_M, b += TILE_N) {
		const vec *y = (const vec *)b;

#pragma GCC unroll 6
		for (int i = 0; i < TILE_M; i++) {
			sum[i][0] += a[i] * y[0];
			sum[i][1] += a[i] * y[1];
		}
	}
	memcpy(out, sum, sizeof(sum));
}

static void tile_store(acc_t *c, long ldc, acc_t sum[TILE_M][TILE_N], int m, int n, acc_t alpha,
		       acc_t beta)
{
	for (int i = 0; i < m; i++)
		for (int j = 0; j < n; j++)
			c[i * ldc + j] = beta == 0 ? alpha * sum[i][j]
						   : alpha * sum[i][j] + beta * c[i * ldc + j];
}

/* The packed panels: c[m][n] = alpha a b + beta c. */
static void panels(acc_t *c, long ldc, int m, int n, int k, acc_t alpha, acc_t beta)
{
	acc_t sum[TILE_M][TILE_N] __attribute__((aligned(sizeof(vec))));

	for (int j = 0; j < n; j += TILE_N)
		for (int i = 0; i < m; i += TILE_M) {
			tile_sum(sum, pack.a + (long)i * k, pack.b + (long)j * k, k);
			tile_store(c + i * ldc + j, ldc, sum, MIN(TILE_M, m - i),
				   MIN(TILE_N, n - j), alpha, beta);
		}
}

void blas_gemm_acc(bool ta, bool tb, int m, int n, int k, double alpha, const acc_t *a, long lda,
		   const acc_t *b, long ldb, double beta, acc_t *c, long ldc)
{
	long a_row = ta ? 1 : lda, a_inner = ta ? lda : 1;
	long b_col = tb ? ldb : 1, b_inner = tb ? 1 : ldb;

	for (int j = 0; j < n; j += PANEL_N)
		for (int l = 0; l < MAX(k, 1); l += PANEL_K) {
			int nb = MIN(PANEL_N, n - j), kb = MIN(PANEL_K, k - l);

			pack_panels(pack.b, b + j * b_col + l * b_inner, b_col, b_inner, nb, kb,
				    TILE_N);
			for (int i = 0; i < m; i += PANEL_M) {
				int mb = MIN(PANEL_M, m - i);

				pack_panels(pack.a, a + i * a_row + l * a_inner, a_row, a_inner,
					    mb, kb, TILE_M);
				panels(c + i * ldc + j, ldc, mb, nb, kb, alpha, l ? 1 : beta);
			}
		}
}
