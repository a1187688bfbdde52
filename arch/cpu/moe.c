// SPDX-License-Identifier: MIT
/*
 * Mixtures of experts: routing, rows sorted by expert, products of each expert's rows,
 * and the balance between them.
 */
#include <string.h>

#include "kernels_moe.h"
#include "math.h"
#include "tile.h"

enum {
	SPLIT_MIN = 16384,	/* elements below which threads cost more than they gain */
	GROUP = 64,		/* tokens whose losses one thread adds */
};

/* ---- routing ------------------------------------------------------------------- */

/* The k largest of a token, and the softmax of their logits. */
static void choose(const struct moe *m, int token)
{
	const acc_t *g = m->logits + (long)token * m->experts;
	int32_t *slot = m->slot + (long)token * m->k;
	acc_t *p = m->p + (long)token * m->k, top = -INFINITY, sum = 0;
	acc_t *key = tile_scratch(m->experts);

	for (int e = 0; e < m->experts; e++)
		key[e] = g[e] + (m->bias ? m->bias[e] : 0);
	for (int j = 0; j < m->k; j++) {
		int best = -1;

		for (int e = 0; e < m->experts; e++)
			if (key[e] == key[e] && (best < 0 || key[e] > key[best]))
				best = e;
		best = best < 0 ? j : best;	/* nothing but NaN: any, the loss tells */
		key[best] = NAN;
		slot[j] = best;
		top = MAX(top, g[best]);
	}
	for (int j = 0; j < m->k; j++) {
		p[j] = r_exp(g[slot[j]] - top);
		sum += p[j];
	}
	for (int j = 0; j < m->k; j++)
		p[j] /= sum;
}

/* Rows by expert, then by token: a counting sort. */
static void sort_pairs(const struct moe *m)
{
	int pairs = m->n * m->k;

	memset(m->first, 0, (m->experts + 1) * sizeof(*m->first));
	for (int i = 0; i < pairs; i++)
		m->first[m->slot[i] + 1]++;
	for (int e = 0; e < m->experts; e++)
		m->first[e + 1] += m->first[e];
	for (int i = 0; i < pairs; i++) {
		int row = m->first[m->slot[i]]++;

		m->place[i] = row;
		m->pair[row] = i;
	}
	memmove(m->first + 1, m->first, m->experts * sizeof(*m->first));
	m->first[0] = 0;
}

void k_moe_route(const struct moe *m)
{
#pragma omp parallel for schedule(static) if ((long)m->n * m->experts * m->k >= SPLIT_MIN)
	for (int i = 0; i < m->n; i++)
		choose(m, i);
	sort_pairs(m);
}

void k_moe_route_bwd(acc_t *dlogits, const acc_t *dp, const struct moe *m)
{
#pragma omp parallel for schedule(static) if ((long)m->n * m->experts >= SPLIT_MIN)
	for (long i = 0; i < m->n; i++) {
		const acc_t *p = m->p + i * m->k;
		const int32_t *place = m->place + i * m->k;
		acc_t *d = dlogits + i * m->experts, mean = 0;

		memset(d, 0, m->experts * sizeof(*d));
		for (int j = 0; j < m->k; j++)
			mean += p[j] * dp[place[j]];
		for (int j = 0; j < m->k; j++)
			d[m->slot[i * m->k + j]] = p[j] * (dp[place[j]] - mean);
	}
}

/* ---- rows ----------------------------------------------------------------------- */

void k_moe_gather(act_t *rows, const act_t *x, int c, const struct moe *m)
{
	int pairs = m->n * m->k;

#pragma omp parallel for schedule(static) if ((long)pairs * c >= SPLIT_MIN)
	for (long row = 0; row < pairs; row++)
		memcpy(rows + row * c, x + (long)(m->pair[row] / m->k) * c, c * sizeof(*x));
}

static void combine_token(acc_t *sum, const act_t *rows, int c, bool weighted, long token,
			  const struct moe *m)
{
	for (int j = 0; j < m->k; j++) {
		const act_t *x = rows + (long)m->place[token * m->k + j] * c;
		acc_t p = weighted ? m->p[token * m->k + j] : 1;

#pragma omp simd
		for (int i = 0; i < c; i++)
			sum[i] += p * load(x[i]);
	}
}

void k_moe_combine(act_t *y, const act_t *rows, int c, bool weighted, double beta,
		   const struct moe *m)
{
#pragma omp parallel for schedule(static) if ((long)m->n * m->k * c >= SPLIT_MIN)
	for (long token = 0; token < m->n; token++) {
		acc_t *sum = tile_scratch(c);
		act_t *to = y + token * c;

		for (int i = 0; i < c; i++)
			sum[i] = beta != 0 ? (acc_t)beta * load(to[i]) : 0;
		combine_token(sum, rows, c, weighted, token, m);
		store_row(to, sum, c);
	}
}

/* ---- products ------------------------------------------------------------------- */

void k_moe_gemm(const struct gemm *g, const struct moe *m)
{
	for (int e = 0; e < m->experts; e++) {
		struct gemm one = *g;
		long row = m->first[e];

		one.m = m->first[e + 1] - row;
		one.a = (const act_t *)g->a + row * g->lda;
		one.b = (const act_t *)g->b + e * g->sb;
		one.c = (act_t *)g->c + row * g->ldc;
		k_gemm(&one);
	}
}

void k_moe_gemm_grad(const struct gemm *g, const struct moe *m)
{
	for (int e = 0; e < m->experts; e++) {
		struct gemm one = *g;
		long row = m->first[e];
		grad_t *c = (grad_t *)g->c + e * g->sc;

		one.k = m->first[e + 1] - row;
		one.a = (const act_t *)g->a + row * g->lda;
		one.b = (const act_t *)g->b + row * g->ldb;
		one.c = c;
		if (one.k)
			k_gemm_grad(&one);
		for (long i = 0; !one.k && i < g->m; i++)
			memset(c + i * g->ldc, 0, g->n * sizeof(*c));
	}
}

void k_moe_swiglu_bwd(act_t *dgu, act_t *h, acc_t *dp, const act_t *gu, const act_t *dh, int width,
		      const struct moe *m)
{
	int pairs = m->n * m->k;

#pragma omp parallel for schedule(static) if ((long)pairs * width >= SPLIT_MIN)
	for (long row = 0; row < pairs; row++) {
		const act_t *g = gu + 2 * row * width, *u = g + width, *d = dh + row * width;
		act_t *dg = dgu + 2 * row * width, *du = dg + width, *to = h + row * width;
		acc_t p = m->p[m->pair[row]], sum = 0;

#pragma omp simd simdlen(LANES_WIDE) reduction(+ : sum)
		for (int j = 0; j < width; j++) {
			acc_t x = load(g[j]), s = r_sigmoid(x), v = load(u[j]), dy = load(d[j]);

			sum += dy * (x * s * v);
			to[j] = store(p * (x * s * v));
			dg[j] = store(p * dy * v * (s + x * s * (1 - s)));
			du[j] = store(p * dy * x * s);
		}
		dp[row] = sum;
	}
}

/* ---- balance -------------------------------------------------------------------- */

/*
 * q = softmax of a token's logits; f_i q_i summed, f_i in pairs
 */
static acc_t shares(acc_t *q, const struct moe *m, long token)
{
	const acc_t *g = m->logits + token * m->experts;
	acc_t top = -INFINITY, sum = 0, mean = 0;

	for (int e = 0; e < m->experts; e++)
		top = MAX(top, g[e]);
	for (int e = 0; e < m->experts; e++) {
		q[e] = r_exp(g[e] - top);
		sum += q[e];
	}
	for (int e = 0; e < m->experts; e++) {
		q[e] /= sum;
		mean += q[e] * (m->first[e + 1] - m->first[e]);
	}
	return mean;
}

/* What one pair of one token weighs: E / (n k) for f, 1 / n for P. */
static double pair_weight(double weight, const struct moe *m)
{
	return weight * m->experts / ((double)m->n * m->k) / m->n;
}

void k_moe_balance(double *dst, double weight, const struct moe *m)
{
	double sum = 0;

#pragma omp parallel for ordered schedule(static, 1) if ((long)m->n * m->experts >= SPLIT_MIN)
	for (int i0 = 0; i0 < m->n; i0 += GROUP) {
		acc_t *q = tile_scratch(m->experts);
		double group = 0;

		for (int i = i0; i < MIN(i0 + GROUP, m->n); i++)
			group += shares(q, m, i);
#pragma omp ordered
		sum += group;
	}
	*dst += pair_weight(weight, m) * sum;
}

void k_moe_balance_bwd(acc_t *dlogits, double weight, const struct moe *m)
{
	double one = pair_weight(weight, m);

#pragma omp parallel for schedule(static) if ((long)m->n * m->experts >= SPLIT_MIN)
	for (long i = 0; i < m->n; i++) {
		acc_t *q = tile_scratch(m->experts), *d = dlogits + i * m->experts;
		acc_t mean = shares(q, m, i);

		for (int e = 0; e < m->experts; e++)
			d[e] += one * (q[e] * (m->first[e + 1] - m->first[e] - mean));
	}
}

void k_moe_excess(grad_t *excess, const struct moe *m)
{
	for (int e = 0; e < m->experts; e++)
		excess[e] = (double)m->experts * (m->first[e + 1] - m->first[e]) -
			    (double)m->n * m->k;
}
