// SPDX-License-Identifier: MIT
/*
 * Matrix products: cut into blocks of the result, one BLAS call of one thread per
 * block, the epilogue while the block is in cache. The libraries take no workspace. A
 * product is summed in acc_t: in its result, or beside it where that is bf16; then the
 * epilogue runs on the sums and rounds them once.
 *
 * The cut is a function of the shape alone, so that the thread count changes no
 * bit. Every block packs its own rows of a and columns of b: few, square blocks
 * waste least, many blocks feed many cores. The constants were fitted on the
 * products of GPT-2 124M with 256 rows and of a 64-wide model with 1024.
 */
#include "amx.h"
#include "blas.h"
#include "kernels.h"
#include "math.h"
#include "thin.h"
#include "tile.h"
#include "util.h"

enum {
	BLOCK_ROWS_MAX = 1024,		/* bounds the buffers of the BLAS */
	BLOCK_AREA_MIN = 48 * 1024,	/* results of a block of a large product */
	COLUMN_STEP = 16,		/* blocks start on a cache line of c */
	ROW_STEP = 8,
	THIN_COLUMNS = 64,		/* columns of a block of a thin product */
	BATCH_MANY = 8,			/* products enough without cutting them */
	STRIP = 64,			/* columns that one thread sums */
	GROUP = 64,			/* rows summed in acc_t; the groups in double */
	CAST_MIN = 16384,		/* elements below which threads cost more than they gain */
};

#define SPLIT_FLOPS 2e6		/* below, starting threads costs more than it gains */
#define SPLIT_THIN 250e3	/* the same, elements that a thin product reads */
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
static inline void row_add(acc_t *y, const act_t *x, int n)
{
#pragma omp simd simdlen(LANES_WIDE)
	for (int j = 0; j < n; j++)
		y[j] += load(x[j]);
}

/* Rows of sums, [m][n]. */
struct sums {
	acc_t *x;
	long ld;
	int m, n;
};

/* c = sums + beta c where c is rounded; else it was added to already */
static void epilogue_plain(act_t *c, long ldc, const struct sums *s, acc_t beta)
{
	for (int i = 0; i < s->m; i++) {
		acc_t *sum = s->x + i * s->ld;

		for (int j = 0; beta != 0 && j < s->n; j++)
			sum[j] += beta * load(c[i * ldc + j]);
		store_row(c + i * ldc, sum, s->n);
	}
}

static void epilogue_bias(act_t *c, long ldc, const struct sums *s, const param_t *bias)
{
	for (int i = 0; i < s->m; i++) {
		if (bias)
			row_add(s->x + i * s->ld, bias, s->n);
		store_row(c + i * ldc, s->x + i * s->ld, s->n);
	}
}

/* The GELU of aux as backward will read it, that is rounded. */
static void epilogue_bias_gelu(act_t *c, long ldc, act_t *aux, long ldaux, const struct sums *s,
			       const param_t *bias)
{
	epilogue_bias(aux, ldaux, s, bias);
	for (int i = 0; i < s->m; i++)
#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < s->n; j++)
			c[i * ldc + j] = store(r_gelu(load(aux[i * ldaux + j])));
}

static void epilogue_dgelu(act_t *c, long ldc, const act_t *aux, long ldaux, const struct sums *s)
{
	for (int i = 0; i < s->m; i++)
#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < s->n; j++)
			c[i * ldc + j] = store(s->x[i * s->ld + j] *
					       r_gelu_grad(load(aux[i * ldaux + j])));
}

static bool is_thin(const struct gemm *g)
{
	return g->m <= THIN_ROWS && g->tb && !g->ta;
}

/* Where the sums of a block run: in @own, or in the result @c, or in the GELU's @aux. */
static struct sums sums_of(const struct gemm *g, act_t *c, act_t *aux, int m, int n, acc_t *own)
{
	bool gelu = g->ep == GEMM_BIAS_GELU;

	if (own)
		return (struct sums){ own, n, m, n };
	return (struct sums){ (acc_t *)(gelu ? aux : c), gelu ? g->ldaux : g->ldc, m, n };
}

/* What a thread has while it works on a product. */
struct own {
	acc_t *sums;		/* of a block, where they run beside the result */
	acc_t *room;		/* for few rows in the form that is multiplied */
	const void *few;	/* these */
	int product;		/* of the batch, that @few belongs to */
	long ld;
};

static struct own own_of(const struct gemm *g, const struct cut *cut, bool apart)
{
	size_t area = apart ? (size_t)cut->mb * cut->nb : 0, left = 0;
	struct own own = { .product = -1 };

	if (is_thin(g))
		left = amx_ready() ? amx_left(g->m, g->k) : thin_left(g->m, g->k);
	own.sums = tile_scratch(area + left);
	own.room = own.sums + area;
	return own;
}

/* A block of few rows, which are packed once for all columns that the thread multiplies. */
static void thin(const struct gemm *g, int p, const act_t *a, const act_t *b, int n, double beta,
		 const struct sums *s, struct own *own)
{
	if (own->product != p) {
		own->product = p;
		own->ld = g->lda;
		own->few = own->room;
		if (amx_ready())
			amx_pack(g->m, g->k, a, g->lda, own->room);
		else
			own->few = thin_widen(a, &own->ld, g->m, g->k, own->room);
	}
	if (amx_ready())
		amx_gemm(g->m, n, g->k, g->alpha, own->few, b, g->ldb, beta, s->x, s->ld);
	else
		thin_gemm(g->m, n, g->k, g->alpha, own->few, own->ld, b, g->ldb, beta, s->x, s->ld);
}

/* Block @at of the grid: the product and its epilogue. */
static void block(const struct gemm *g, const struct cut *cut, int at, bool wide, struct own *own)
{
	int p = at / (cut->rows * cut->columns), i = at % cut->rows * cut->mb;
	int j = at / cut->rows % cut->columns * cut->nb;
	int m = MIN(cut->mb, g->m - i), n = MIN(cut->nb, g->n - j);
	const act_t *a = (const act_t *)g->a + p * g->sa + (g->ta ? i : i * g->lda);
	const act_t *b = (const act_t *)g->b + p * g->sb + (g->tb ? j * g->ldb : j);
	long to = p * g->sc + i * g->ldc + j;
	act_t *c = wide ? (act_t *)((acc_t *)g->c + to) : (act_t *)g->c + to;
	act_t *aux = g->aux ? g->aux + i * g->ldaux + j : NULL;
	const param_t *bias = g->bias ? g->bias + j : NULL;
	bool apart = NARROW && !wide;
	struct sums s = sums_of(g, c, aux, m, n, apart ? own->sums : NULL);
	double beta = apart ? 0 : g->beta;

	if (is_thin(g))
		thin(g, p, a, b, n, beta, &s, own);
	else
		blas_gemm(g->ta, g->tb, m, n, g->k, g->alpha, a, g->lda, b, g->ldb, beta, s.x,
			  s.ld);
	if (g->ep == GEMM_BIAS)
		epilogue_bias(c, g->ldc, &s, bias);
	else if (g->ep == GEMM_BIAS_GELU)
		epilogue_bias_gelu(c, g->ldc, aux, g->ldaux, &s, bias);
	else if (g->ep == GEMM_DGELU)
		epilogue_dgelu(c, g->ldc, aux, g->ldaux, &s);
	else if (apart)
		epilogue_plain(c, g->ldc, &s, g->beta);
}

/*
 * Elements [j, j + STRIP) of the bias's gradient: the rows of a[k][m] in ascending
 * order, GROUP rows in acc_t, the groups in double.
 */
static void bias_strip(const struct gemm *g, int j)
{
	int width = MIN(STRIP, g->m - j);
	double total[STRIP] = { 0 };

	for (int i0 = 0; i0 < g->k; i0 += GROUP) {
		acc_t sum[STRIP] = { 0 };

		for (int i = i0; i < MIN(i0 + GROUP, g->k); i++)
			row_add(sum, (const act_t *)g->a + i * g->lda + j, width);
		for (int l = 0; l < width; l++)
			total[l] += sum[l];
	}
	for (int l = 0; l < width; l++)
		g->db[j + l] = total[l];
}

static bool is_large(const struct gemm *g, int batch)
{
	double elements = (double)batch * g->n * g->k;

	return is_thin(g) ? elements >= SPLIT_THIN : 2 * g->m * elements >= SPLIT_FLOPS;
}

/* @wide: the result is acc_t or grad_t */
static void gemm(const struct gemm *g, bool wide)
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
#pragma omp parallel if (blocks + strips > 1 && is_large(g, batch))
	{
		struct own own = own_of(g, &s, NARROW && !wide);

#pragma omp for schedule(dynamic)
		for (int at = 0; at < blocks + strips; at++) {
			if (at < blocks)
				block(g, &s, at, wide, &own);
			else
				bias_strip(g, (at - blocks) * STRIP);
		}
	}
}

void k_gemm(const struct gemm *g)
{
	gemm(g, false);
}

void k_gemm_acc(const struct gemm *g)
{
	gemm(g, true);
}

void k_gemm_grad(const struct gemm *g)
{
	gemm(g, true);
}

void k_weights_rest(const void *from, size_t bytes)
{
	(void)from, (void)bytes;	/* one kernel at a time */
}

void k_cast(param_t *dst, const grad_t *src, size_t n)
{
#pragma omp parallel for simd schedule(static) if (n >= CAST_MIN)
	for (size_t i = 0; i < n; i++)
		dst[i] = store(src[i]);
}

void k_widen(acc_t *dst, const act_t *src, size_t n)
{
#pragma omp parallel for simd schedule(static) if (n >= CAST_MIN)
	for (size_t i = 0; i < n; i++)
		dst[i] = load(src[i]);
}

size_t k_workspace(void)
{
	return 0;
}

void k_workspace_use(void *mem)
{
	(void)mem;
}
