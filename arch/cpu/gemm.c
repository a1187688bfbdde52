// SPDX-License-Identifier: MIT
/*
 * Matrix products: cut into blocks of the result, one BLAS call of one thread per
 * block, the epilogue while the block is in cache.
 *
 * The cut is a function of the shape alone, so that the thread count changes no
 * bit. Every block packs its own rows of a and columns of b: few, square blocks
 * waste least, many blocks feed many cores. The constants were fitted on the
 * products of GPT-2 124M with 256 rows and of a 64-wide model with 1024.
 */
#include "blas.h"
#include "kernels.h"
#include "math.h"
#include "util.h"

enum {
	BLOCK_ROWS_MAX = 1024,		/* bounds the buffers of the BLAS */
	BLOCK_AREA_MIN = 48 * 1024,	/* results of a block of a large product */
	COLUMN_STEP = 16,		/* blocks start on a cache line of c */
	ROW_STEP = 8,
	THIN_ROWS = 8,			/* up to here b is read once and not packed */
	THIN_COLUMNS = 256,		/* columns of a block of a thin product */
	BATCH_MANY = 8,			/* products enough without cutting them */
};

#define SPLIT_FLOPS 2e6		/* below, starting threads costs more than it gains */
#define BLOCK_FLOPS 400e6	/* of a block of a large product, 3 ms on one core */
#define GROW_FLOPS 56e6		/* smaller ones: blocks = sqrt(flops / GROW_FLOPS) */

/* How one product is cut: rows x columns blocks of mb x nb. */
struct cut {
	int rows, columns, mb, nb;
};

/* Blocks wanted for one of @batch products, a power of two. */
static int blocks_wanted(const struct gemm *g, int batch)
{
	double flops = 2.0 * g->m * g->n * g->k, area = (double)g->m * g->n;
	double most = MAX(flops / BLOCK_FLOPS, sqrt(flops / GROW_FLOPS));
	int blocks = batch > 1 || flops < SPLIT_FLOPS ? 1 : 2;

	most = MIN(most, area / BLOCK_AREA_MIN);
	if (batch < BATCH_MANY)
		while (2 * blocks <= most)
			blocks *= 2;
	return blocks;
}

static struct cut cut_of(const struct gemm *g, int batch)
{
	int blocks = blocks_wanted(g, batch);
	struct cut s = { .rows = 1, .columns = 1 };

	while ((long)g->m > (long)s.rows * BLOCK_ROWS_MAX || s.rows * s.columns < blocks) {
		if ((long)g->n * s.rows > (long)g->m * s.columns &&
		    (long)g->m <= (long)s.rows * BLOCK_ROWS_MAX)
			s.columns *= 2;
		else
			s.rows *= 2;
	}
	s.mb = ROUND_UP((g->m + s.rows - 1) / s.rows, ROW_STEP);
	s.nb = ROUND_UP((g->n + s.columns - 1) / s.columns, COLUMN_STEP);
	s.rows = (g->m + s.mb - 1) / s.mb;
	s.columns = (g->n + s.nb - 1) / s.nb;
	return s;
}

static void epilogue_bias(act_t *c, long ldc, const param_t *bias, int m, int n)
{
	for (int i = 0; i < m; i++)
#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < n; j++)
			c[i * ldc + j] += bias[j];
}

static void epilogue_bias_gelu(act_t *c, act_t *aux, long ld, const param_t *bias, int m, int n)
{
	for (int i = 0; i < m; i++)
#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < n; j++) {
			act_t x = aux[i * ld + j] + bias[j];

			aux[i * ld + j] = x;
			c[i * ld + j] = r_gelu(x);
		}
}

static void epilogue_dgelu(act_t *c, const act_t *aux, long ld, int m, int n)
{
	for (int i = 0; i < m; i++)
#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < n; j++)
			c[i * ld + j] *= r_gelu_grad(aux[i * ld + j]);
}

/*
 * A few rows of a against weights: packing b would cost more than the product, so
 * every row of b is read once and multiplied with all rows of a.
 */
static void thin(const struct gemm *g, const act_t *a, const act_t *b, act_t *c, int n)
{
	const act_t alpha = g->alpha, beta = g->beta;

	for (int j = 0; j < n; j++) {
		for (int i = 0; i < g->m; i++) {
			const act_t *x = a + i * g->lda, *y = b + j * g->ldb;
			act_t *to = c + i * g->ldc + j, sum = 0;

#pragma omp simd simdlen(LANES_WIDE) reduction(+ : sum)
			for (int l = 0; l < g->k; l++)
				sum += x[l] * y[l];
			*to = beta == 0 ? alpha * sum : alpha * sum + beta * *to;
		}
	}
}

static bool is_thin(const struct gemm *g)
{
	return g->m <= THIN_ROWS && g->tb && !g->ta;
}

/* Block @at of the grid: the product and its epilogue. */
static void block(const struct gemm *g, const struct cut *s, int at)
{
	int p = at / (s->rows * s->columns), i = at % s->rows * s->mb;
	int j = at / s->rows % s->columns * s->nb;
	int m = MIN(s->mb, g->m - i), n = MIN(s->nb, g->n - j);
	const act_t *a = (const act_t *)g->a + p * g->sa + (g->ta ? i : i * g->lda);
	const act_t *b = (const act_t *)g->b + p * g->sb + (g->tb ? j * g->ldb : j);
	act_t *c = (act_t *)g->c + p * g->sc + i * g->ldc + j;
	act_t *aux = g->aux ? g->aux + i * g->ldc + j : NULL;
	act_t *to = g->ep == GEMM_BIAS_GELU ? aux : c;

	if (is_thin(g))
		thin(g, a, b, to, n);
	else
		blas_gemm(g->ta, g->tb, m, n, g->k, g->alpha, a, g->lda, b, g->ldb, g->beta,
			  to, g->ldc);
	if (g->ep == GEMM_BIAS)
		epilogue_bias(c, g->ldc, g->bias + j, m, n);
	else if (g->ep == GEMM_BIAS_GELU)
		epilogue_bias_gelu(c, aux, g->ldc, g->bias + j, m, n);
	else if (g->ep == GEMM_DGELU)
		epilogue_dgelu(c, aux, g->ldc, m, n);
}

void k_gemm(const struct gemm *g)
{
	int batch = MAX(g->batch, 1), blocks;
	struct cut s;

	if (!g->m || !g->n)
		return;
	if (is_thin(g))
		s = (struct cut) { 1, (g->n + THIN_COLUMNS - 1) / THIN_COLUMNS, g->m,
				   THIN_COLUMNS };
	else
		s = cut_of(g, batch);
	blocks = batch * s.rows * s.columns;
#pragma omp parallel for schedule(dynamic) if (blocks > 1 && \
	2.0 * batch * g->m * g->n * g->k >= SPLIT_FLOPS)
	for (int at = 0; at < blocks; at++)
		block(g, &s, at);
}

/* grad_t is act_t on the cpu. */
void k_gemm_grad(const struct gemm *g)
{
	k_gemm(g);
}
