// SPDX-License-Identifier: MIT
/*
 * A few rows times a weight: rows of b against all rows of a, so that b streams from
 * memory once and each of its vectors is multiplied m times while it is in a register.
 * An element is LANES chains over k, or over its pairs, halved until they are one.
 */
#include "thin.h"
#include "tile.h"

typedef tile_vec vec;
typedef acc_t loose __attribute__((vector_size(__BIGGEST_ALIGNMENT__), may_alias,
				   aligned(sizeof(acc_t))));
/* Two doubles of SSE2 have halves of one, and no quarters. */
enum {
	HALF = __BIGGEST_ALIGNMENT__ / 2,
	QUARTER = HALF > sizeof(acc_t) ? HALF / 2 : HALF,
};
typedef acc_t half __attribute__((vector_size(HALF)));
typedef acc_t quarter __attribute__((vector_size(QUARTER)));

/*
 * Rows of b in a block. While all of a is in the first cache one row at a time is best: b
 * is then one stream, which the processor's own prefetching follows. Else rows of b share
 * what is read of a; their sums are registers, of which there are 32 where vectors have
 * 64 bytes, else 16.
 */
enum {
	WIDE = __BIGGEST_ALIGNMENT__ == 64,
	FEW_ROWS = 4,
	COLUMNS_FEW = WIDE ? 4 : 2,	/* beside at most FEW_ROWS of a */
	COLUMNS_MANY = WIDE ? (NARROW ? 3 : 4) : 1,
	NEAR_BYTES = 16 << 10,		/* of a: half of the smallest first cache */
	AHEAD = 4,		/* rows between what is fetched and what is multiplied */
};

/* What one instruction multiplies: STEP columns of a row, or the last @n and zeros. */
#if THIN_PAIRS
typedef __m512i operand;
enum { STEP = 2 * LANES };

static inline operand left(const act_t *x, int n)
{
	return n ? _mm512_maskz_loadu_epi16((1u << n) - 1, x) : _mm512_loadu_si512(x);
}

static inline operand right(const act_t *x, int n)
{
	return left(x, n);
}

static inline vec add_product(vec sum, operand x, operand y)
{
	return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
}
#else
typedef vec operand;
enum { STEP = LANES };

static inline operand left(const acc_t *x, int n)
{
	vec v = {};

	if (!n)
		return (vec)*(const loose *)x;
	for (int e = 0; e < n; e++)
		v[e] = x[e];
	return v;
}

static inline operand right(const act_t *x, int n)
{
	vec v = {};

	if (!n)
		return tile_load(x);
	for (int e = 0; e < n; e++)
		v[e] = load(x[e]);
	return v;
}

static inline vec add_product(vec sum, operand x, operand y)
{
	return sum + x * y;
}
#endif

static inline acc_t add_lanes(vec v)
{
	half h[2];
	quarter q[2];
	acc_t sum = 0;

	memcpy(h, &v, sizeof(h));
	h[0] += h[1];
	memcpy(q, &h[0], sizeof(h[0]));
	if (QUARTER < HALF)
		q[0] += q[1];
	for (size_t e = 0; e < sizeof(quarter) / sizeof(acc_t); e++)
		sum += q[0][e];
	return sum;
}

/* All rows of a, @m of them, times @columns rows of b. */
struct thin {
	const thin_t *a;
	const act_t *b;
	long lda, ldb;
	int k;
};

/* sum[i][j] += a_i b_j over STEP elements from l on, or the last few. */
static inline __attribute__((always_inline)) void
multiply(const struct thin *t, int m, int columns, int l, int rest, vec sum[][COLUMNS_FEW])
{
	operand y[COLUMNS_FEW], x;

	for (int j = 0; j < columns; j++)
		__builtin_prefetch(t->b + (j + AHEAD) * t->ldb + l);
	for (int j = 0; j < columns; j++)
		y[j] = right(t->b + j * t->ldb + l, rest);
	for (int i = 0; i < m; i++) {
		x = left(t->a + i * t->lda + l, rest);
		for (int j = 0; j < columns; j++)
			sum[i][j] = add_product(sum[i][j], x, y[j]);
	}
}

static inline __attribute__((always_inline)) void
block(const struct thin *t, int m, int columns, acc_t alpha, acc_t beta, acc_t *c, long ldc)
{
	vec sum[THIN_ROWS][COLUMNS_FEW] = {};
	int l = 0;

	for (; l + STEP <= t->k; l += STEP)
		multiply(t, m, columns, l, 0, sum);
	if (l < t->k)
		multiply(t, m, columns, l, t->k - l, sum);
	for (int i = 0; i < m; i++)
		for (int j = 0; j < columns; j++) {
			acc_t *to = c + i * ldc + j, x = alpha * add_lanes(sum[i][j]);

			*to = beta == 0 ? x : x + beta * *to;
		}
}

/* Blocks of @columns rows of b, then single ones. */
static inline __attribute__((always_inline)) void
rows(struct thin t, int m, int columns, int n, acc_t alpha, acc_t beta, acc_t *c, long ldc)
{
	int j = 0;

	for (; j + columns <= n; j += columns, t.b += columns * t.ldb)
		block(&t, m, columns, alpha, beta, c + j, ldc);
	for (; j < n; j++, t.b += t.ldb)
		block(&t, m, 1, alpha, beta, c + j, ldc);
}

/* One instance for each number of rows, so that the sums are registers. */
#define CASE(m) \
	case m: \
		if (near) \
			return rows(t, m, 1, n, alpha, beta, c, ldc); \
		return rows(t, m, m <= FEW_ROWS ? COLUMNS_FEW : COLUMNS_MANY, n, alpha, beta, c, ldc)

void thin_gemm(int m, int n, int k, acc_t alpha, const thin_t *a, long lda, const act_t *b,
	       long ldb, acc_t beta, acc_t *c, long ldc)
{
	const struct thin t = { a, b, lda, ldb, k };
	bool near = (size_t)m * k * sizeof(*a) <= NEAR_BYTES;

	switch (m) {
	CASE(1);
	CASE(2);
	CASE(3);
	CASE(4);
	CASE(5);
	CASE(6);
	CASE(7);
	CASE(8);
	}
}
