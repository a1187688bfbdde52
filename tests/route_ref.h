/* SPDX-License-Identifier: MIT */
/*
 * Routing cases: dense rows R and R^ in double, gathered rows in one piece and as two
 * groups of columns. What the tests of training and of decode share.
 */
#ifndef TENON_ROUTE_REF_H
#define TENON_ROUTE_REF_H

#include <omp.h>
#include <string.h>

#include "attn_ref.h"
#include "kernels_route.h"

/* What is selected, beside the shape of the attention. */
struct rule {
	int nr;			/* 1, or heads */
	enum route_mode mode;
	int topk;
	double tau;
	bool normalize, ties;	/* ties: keys repeat with period 5, values of R too */
	int width;		/* of the gathered rows, a multiple of nr */
	int wide;		/* the last of these columns are acc_t; 0 where nr is not 1 */
	double alpha, beta;
};

/* Rows as two groups of columns. */
struct pair {
	struct buf x, wide;
	struct route_rows rows;
	long n;			/* rows */
};

/* A case: the built route, its memory, and dense R and R^, [b][t][nr][t]. */
struct test {
	struct shape s;
	struct rule m;
	struct work w;
	struct ref r;
	struct route route;
	struct buf weight, thr, inv, scratch, x, y, y0;	/* x, y, y0: [b][t][width + GAP] */
	struct pair pair;
	int32_t *index;
	double *dense, *sparse;
	double margin;	/* by which the closest selection was decided, relative */
};

/* Closer selections may turn out otherwise in the kernels: other inputs are drawn. */
#define CLEAR_MARGIN SUM_ERROR

static inline long row_of(const struct test *c, int i, int t, int set)
{
	return ((long)i * c->s.t + t) * c->m.nr + set;
}

/* Is a before b among the largest? Ties: the smaller index. */
static inline int rank_of(const double *row, int n, int u)
{
	int rank = 0;

	for (int v = 0; v < n; v++)
		rank += row[v] > row[u] || (row[v] == row[u] && v < u);
	return rank;
}

/*
 * The rule of the specification on a dense row of n visible entries. Returns how
 * clear it was: the smallest relative distance of an entry from being selected or
 * not; exact ties are clear.
 */
static inline double ref_sparse(const struct rule *m, double *to, const double *row, int n)
{
	double squares = 0, sum = 0, edge = 0, gap, margin = 1;
	bool keep;

	for (int u = 0; u < n; u++)
		squares += row[u] * row[u];
	if (m->mode == ROUTE_RMS)
		edge = m->tau * sqrt(squares / n);
	for (int u = 0; m->mode == ROUTE_TOPK && u < n; u++)
		edge = rank_of(row, n, u) == m->topk - 1 ? row[u] : edge;
	for (int u = 0; u < n; u++) {
		keep = m->mode == ROUTE_TOPK ? rank_of(row, n, u) < m->topk :
			m->mode == ROUTE_RMS ? row[u] >= edge : true;
		gap = fabs(row[u] - edge) / edge;
		if (edge > 0 && gap > 0)
			margin = fmin(margin, gap);
		to[u] = keep ? row[u] : 0;
		sum += to[u];
	}
	for (int u = 0; u < n; u++)
		to[u] /= m->normalize ? fmax(sum, 1e-8) : 1;
	return margin;
}

/* One dense row of R: the gated heads of a set, averaged. */
static inline void ref_dense(struct test *c, int i, int set, int t, double *row)
{
	int h0 = c->m.nr == 1 ? 0 : set, h1 = c->m.nr == 1 ? c->s.heads : set + 1;
	const double *gamma = c->r.gamma + ((long)i * c->s.t + t) * c->s.heads;

	for (int h = h0; h < h1; h++)
		for (int u = 0; u <= t; u++)
			row[u] += gamma[h] * ref_p(&c->s, &c->r, i, h, t)[u] / (h1 - h0);
	/* equal keys give equal entries: exactly, as in the kernels */
	for (int u = 5; c->m.ties && u <= t; u++)
		row[u] = row[u - 5];
}

static inline void ref_rows(struct test *c)
{
	double margin, *row;
	long n = 0;

	c->margin = 1;
	for (int i = 0; i < c->s.b; i++)
		for (int t = 0; t < c->s.t; t++)
			for (int set = 0; set < c->m.nr; set++, n++) {
				row = c->dense + n * c->s.t;
				ref_dense(c, i, set, t, row);
				margin = ref_sparse(&c->m, c->sparse + n * c->s.t, row, t + 1);
				c->margin = fmin(c->margin, margin);
			}
}

static inline void repeat_keys(struct test *c)
{
	long width = (long)k_heads(&c->s) * c->s.dk, row;

	for (int i = 0; i < c->s.b; i++)
		for (int u = 5; u < c->s.t; u++) {
			row = (long)i * c->s.t + u;
			memcpy((act_t *)c->w.k.p + row * c->w.a.k_row,
			       (act_t *)c->w.k.p + (row - 5) * c->w.a.k_row, width * ACT);
			memcpy(c->r.k + row * width, c->r.k + (row - 5) * width,
			       width * sizeof(double));
		}
}

/* Two groups of columns, with other gaps than rows in one piece have. */
static inline struct pair pair_new(const struct rule *m, long n)
{
	int width = m->width - m->wide;
	struct pair p = { .n = n, .rows = {
		.width = width, .ld = width + 1,
		.wide_width = m->wide, .wide_ld = m->wide + 2,
	} };

	p.x = buf_new(n * p.rows.ld);
	p.wide = buf_new_acc(n * p.rows.wide_ld);
	p.rows.x = p.x.p;
	p.rows.wide = m->wide ? p.wide.p : NULL;
	return p;
}

static inline void pair_free(struct pair *p)
{
	free(p->x.all);
	free(p->wide.all);
}

/* From rows in one piece with row stride ld. */
static inline void pair_split(struct pair *p, const act_t *from, long ld)
{
	const struct route_rows *r = &p->rows;

	for (long i = 0; i < p->n; i++, from += ld) {
		memcpy(r->x + i * r->ld, from, r->width * sizeof(*from));
		for (int e = 0; e < r->wide_width; e++)
			r->wide[i * r->wide_ld + e] = (acc_t)real(from[r->width + e]);
	}
}

/* And back; NaN where something beside the columns was written. */
static inline void pair_join(const struct pair *p, act_t *to, long ld)
{
	const struct route_rows *r = &p->rows;
	bool clean = gaps_kept(p->x, p->n, r->ld, r->width) && buf_guarded(p->x) &&
		gaps_kept(p->wide, p->n, r->wide_ld, r->wide_width) && buf_guarded(p->wide);

	for (long i = 0; i < p->n; i++, to += ld) {
		memcpy(to, r->x + i * r->ld, r->width * sizeof(*to));
		for (int e = 0; e < r->wide_width; e++)
			to[r->width + e] = act(r->wide[i * r->wide_ld + e]);
		to[0] = clean ? to[0] : act(NAN);
	}
}

static inline struct test test_draw(const struct shape *s, const struct rule *m)
{
	struct test c = { .s = *s, .m = *m, .w = work_new(s), .r = ref_new(s) };
	size_t rows = (size_t)s->b * s->t, sets = rows * m->nr;
	size_t scratch = k_route_scratch(s->b, s->t, m->nr, m->topk);

	work_fill(s, &c.w, &c.r);
	for (size_t i = 0; s->gamma && i < rows * s->heads; i++) {	/* as a gate is */
		put(c.w.gamma.p, ACC, i, 0.75 + 0.25 * get(c.w.gamma.p, ACC, i));
		c.r.gamma[i] = get(c.w.gamma.p, ACC, i);
	}
	if (m->ties)
		repeat_keys(&c);
	ref_forward(s, &c.r);
	k_attn_fwd(&c.w.a);
	arch_sync();
	c.dense = dense(sets * s->t);
	c.sparse = dense(sets * s->t);
	ref_rows(&c);
	c.weight = buf_new_acc(sets * m->topk);
	c.index = xcalloc(sets * m->topk, sizeof(*c.index));
	c.thr = buf_new_acc(sets);
	c.inv = buf_new_acc(sets);
	c.scratch = buf_new((scratch + ACT - 1) / ACT);
	c.pair = pair_new(m, rows);
	c.x = buf_new(rows * (m->width + GAP));
	c.y = buf_new(rows * (m->width + GAP));
	c.y0 = buf_new(rows * (m->width + GAP));
	for (size_t i = 0; i < c.x.n; i++) {
		put(c.x.p, ACT, i, uniform());
		put(c.y0.p, ACT, i, uniform());
	}
	c.route = (struct route) {
		.a = c.w.a, .nr = m->nr, .mode = m->mode, .topk = m->topk, .tau = m->tau,
		.normalize = m->normalize, .index = c.index, .weight = c.weight.p,
		.thr = c.thr.p, .inv = c.inv.p,
	};
	c.route.a.v = NULL;	/* not used */
	c.route.a.o = NULL;
	return c;
}

static inline void test_free(struct test *c)
{
	struct buf all[] = { c->weight, c->thr, c->inv, c->scratch, c->x, c->y, c->y0 };

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		free(all[i].all);
	pair_free(&c->pair);
	free(c->index);
	free(c->dense);
	free(c->sparse);
	work_free(&c->w);
	ref_free(&c->r);
}

/* A case whose selections are clear. */
static inline struct test test_new(const struct shape *s, const struct rule *m)
{
	struct test c = test_draw(s, m);

	while (c.margin < CLEAR_MARGIN) {
		test_free(&c);
		c = test_draw(s, m);
	}
	return c;
}

static inline void name_rule(char *to, size_t n, const struct shape *s, const struct rule *m)
{
	static const char *const mode[] = { "none", "topk", "rms" };

	snprintf(to, n, "%s k %d nr %d of %d / %d heads t %d%s%s%s ra %g width %d (%d) beta %g",
		 mode[m->mode], m->topk, m->nr, s->heads, group_of(s), s->t,
		 m->normalize ? " normalize" : "", m->ties ? " ties" : "",
		 s->gamma ? " gamma" : "", s->ra_scale, m->width, m->wide, m->beta);
}

/* Every mode at several lengths, the other choices in turn. */
static inline void each_rule(void (*test_rule)(const struct shape *s, const struct rule *m))
{
	static const int length[] = { 1, 5, 64, 65, 150 };
	static const int topk[] = { 8, 1, 3, 70 };
	struct shape s;
	struct rule m;
	int n = 0;

	for (size_t l = 0; l < ARRAY_SIZE(length); l++)
		for (int mode = ROUTE_NONE; mode <= ROUTE_RMS; mode++)
			for (int variant = 0; variant < 8; variant++, n++) {
				s = (struct shape) {
					.b = 1 + n % 2, .t = length[l], .heads = n % 3 ? 3 : 1,
					.dk = n % 5 ? 16 : 7, .dv = 4, .one_k = n % 4 < 3,
					.one_v = true, .gamma = n % 7 < 4,
					.ra_scale = n % 3 == 1 ? 0.2 : 0, .window = n % 2 ? 7 : 90,
				};
				if (variant == 3 || variant == 6) {
					s.heads = n % 16 < 8 ? 4 : 6;
					s.group = 2;
					s.one_k = false;
				}
				m = (struct rule) {
					.nr = variant & 1 ? s.heads : 1, .mode = mode,
					.topk = mode == ROUTE_TOPK ? topk[n % 4] : 0, .tau = 0.5,
					.normalize = variant & 2,
					/* a reciprocal term would tell equal keys apart */
					.ties = variant & 4 && s.ra_scale == 0 &&
						mode == ROUTE_TOPK,
					.width = (n % 2 ? 5 : 300) * s.heads, .alpha = 0.3,
					.beta = n % 5 == 0 ? 0 : n % 5 == 1 ? 1 : -0.7,
				};
				m.wide = m.nr == 1 && n % 3 ? 3 : 0;
				test_rule(&s, &m);
			}
}

#endif
