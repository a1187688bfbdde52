// SPDX-License-Identifier: MIT
/*
 * Matrix products: cut into blocks of the result, one BLAS call of one thread per
 * block, the epilogue while the block is in cache. The libraries take no workspace, and
 * the results of k_gemm(), k_gemm_acc() and k_gemm_grad() are of one type.
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
	STRIP = 64,			/* columns that one thread sums */
	GROUP = 64,			/* rows summed in act_t; the groups in double */
	CAST_MIN = 16384,		/* elements below which threads cost more than they gain */
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

/* y += x */
static inline void row_add(act_t *y, const act_t *x, int n)
{
#pragma omp simd simdlen(LANES_WIDE)
	for (int j = 0; j < n; j++)
		y[j] += x[j];
}

static void epilogue_bias(act_t *c, long ldc, const param_t *bias, int m, int n)
{
	for (int i = 0; bias && i < m; i++)
		row_add(c + i * ldc, bias, n);
}

static void epilogue_bias_gelu(act_t *c, long ldc, act_t *aux, long ldaux, const param_t *bias,
			       int m, int n)
{
	for (int i = 0; i < m; i++) {
		if (bias)
			row_add(aux + i * ldaux, bias, n);
#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < n; j++)
			c[i * ldc + j] = r_gelu(aux[i * ldaux + j]);
	}
}

static void epilogue_dgelu(act_t *c, long ldc, const act_t *aux, long ldaux, int m, int n)
{
	for (int i = 0; i < m; i++)
#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < n; j++)
			c[i * ldc + j] *= r_gelu_grad(aux[i * ldaux + j]);
}

/*
 * A few rows of a against weights: packing b would cost more than the product, so
 * every row of b is read once and multiplied with all rows of a.
 */
static void thin(const struct gemm *g, const act_t *a, const act_t *b, act_t *c, long ldc, int n)
{
	const act_t alpha = g->alpha, beta = g->beta;

	for (int j = 0; j < n; j++) {
		for (int i = 0; i < g->m; i++) {
			const act_t *x = a + i * g->lda, *y = b + j * g->ldb;
			act_t *to = c + i * ldc + j, sum = 0;

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
	act_t *aux = g->aux ? g->aux + i * g->ldaux + j : NULL;
	bool gelu = g->ep == GEMM_BIAS_GELU;
	act_t *to = gelu ? aux : c;
	long ld = gelu ? g->ldaux : g->ldc;

	if (is_thin(g))
		thin(g, a, b, to, ld, n);
	else
		blas_gemm(g->ta, g->tb, m, n, g->k, g->alpha, a, g->lda, b, g->ldb, g->beta,
			  to, ld);
	if (g->ep == GEMM_BIAS)
		epilogue_bias(c, g->ldc, g->bias ? g->bias + j : NULL, m, n);
	else if (gelu)
		epilogue_bias_gelu(c, g->ldc, aux, ld, g->bias ? g->bias + j : NULL, m, n);
	else if (g->ep == GEMM_DGELU)
		epilogue_dgelu(c, g->ldc, aux, g->ldaux, m, n);
}

/*
 * Elements [j, j + STRIP) of the bias's gradient: the rows of a[k][m] in ascending
 * order, GROUP rows in act_t, the groups in double.
 */
static void bias_strip(const struct gemm *g, int j)
{
	int width = MIN(STRIP, g->m - j);
	double total[STRIP] = { 0 };

	for (int i0 = 0; i0 < g->k; i0 += GROUP) {
		act_t sum[STRIP] = { 0 };

		for (int i = i0; i < MIN(i0 + GROUP, g->k); i++)
			row_add(sum, (const act_t *)g->a + i * g->lda + j, width);
		for (int l = 0; l < width; l++)
			total[l] += sum[l];
	}
	for (int l = 0; l < width; l++)
		g->db[j + l] = total[l];
}

void k_gemm(const struct gemm *g)
{
	int batch = MAX(g->batch, 1), blocks, strips = g->db ? (g->m + STRIP - 1) / STRIP : 0;
	struct cut s;

	if (!g->m || !g->n)
		return;
	if (is_thin(g))
		s = (struct cut) { 1, (g->n + THIN_COLUMNS - 1) / THIN_COLUMNS, g->m,
				   THIN_COLUMNS };
	else
		s = cut_of(g, batch);
	blocks = batch * s.rows * s.columns;
	/* strips are small: behind the blocks they fill the threads that are done */
#pragma omp parallel for schedule(dynamic) if (blocks + strips > 1 && \
	2.0 * batch * g->m * g->n * g->k >= SPLIT_FLOPS)
	for (int at = 0; at < blocks + strips; at++) {
		if (at < blocks)
			block(g, &s, at);
		else
			bias_strip(g, (at - blocks) * STRIP);
	}
}

void k_gemm_acc(const struct gemm *g)
{
	k_gemm(g);
}

void k_gemm_grad(const struct gemm *g)
{
	k_gemm(g);
}

void k_cast(param_t *dst, const grad_t *src, size_t n)
{
#pragma omp parallel for simd schedule(static) if (n >= CAST_MIN)
	for (size_t i = 0; i < n; i++)
		dst[i] = src[i];
}

void k_widen(acc_t *dst, const act_t *src, size_t n)
{
#pragma omp parallel for simd schedule(static) if (n >= CAST_MIN)
	for (size_t i = 0; i < n; i++)
		dst[i] = src[i];
}

size_t k_workspace(void)
{
	return 0;
}

void k_workspace_use(void *mem)
{
	(void)mem;
}
