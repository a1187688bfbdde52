// SPDX-License-Identifier: MIT
/*
 * What is learned of the states of one split: uncentred means over all tokens, their
 * spectra, and the bases that ways to keep less look from.
 *
 * Each sequence of a head sums alone, and sums are added in the order of sequences, so that
 * threads change no bit.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compress.h"
#include "lapack.h"
#include "util.h"

const char *split_name(enum split s)
{
	static const char *const name[] = { "train", "val", "test" };

	return name[s];
}

void compress_eval(struct compress *c, enum split s, struct eval *e, linear_rnn_fn *fn, void *ctx)
{
	linear_rnn_watch(fn, ctx);
	if (!eval_split(&c->m, s, c->samples, e))
		die("compress: stopped by a signal; nothing was written");
	linear_rnn_watch(NULL, NULL);
}

struct site *compress_site(struct compress *c, const struct mixer_args *a)
{
	for (int i = 0; i < c->nr_sites; i++)
		if (a->w == c->m.w + c->m.sub[c->site[i].sub].param)
			return &c->site[i];
	return NULL;
}

static void find_site(void *ctx, const struct mixer_args *a, const struct linattn *mix)
{
	struct compress *c = ctx;
	int s = 0;

	if (compress_site(c, a))
		return;
	while (a->w != c->m.w + c->m.sub[s].param)
		s++;
	c->site[c->nr_sites++] = (struct site){ .sub = s, .mix = *mix };
}

void fit_sites(struct compress *c)
{
	compress_eval(c, c->fit, &c->full_fit, find_site, c);
	if (!c->nr_sites)
		die("compress: no sub-layer of CONFIG_BLOCK=\"" CONFIG_BLOCK "\" has a linear state");
	for (int i = 0; i < c->nr_sites; i++) {
		const struct sublayer *sub = &c->m.sub[c->site[i].sub];
		int k = c->site[i].mix.dk;

		for (int j = 0; j < c->nr_dims; j++)
			if (c->dims[j] > k)
				die("compress: --dims %d is above the %d channels of a key of %s in "
				    "layer %d", c->dims[j], k, sub->mixer->name, sub->layer);
	}
}

/* ---- means -------------------------------------------------------------------------- */

/* Sums of one site: [heads] of M_K [k][k], C_q [k][k], M_V [v][v], one behind the other. */
struct means {
	struct compress *c;
	struct site *site;
	long size;
	double *sum;
};

static void add_sequence(double *sum, const struct rows *x)
{
	long k = x->k, v = x->v;
	double *s = xcalloc(k * v, sizeof(*s)), *st = xcalloc(k * v, sizeof(*st));

	for (int t = 0; t < x->t; t++) {
		const double *q = x->in.q + t * k;

		state_next(s, x, t);
		for (long i = 0; i < k; i++)
			for (long j = 0; j < v; j++)
				st[j * k + i] = s[i * v + j];
		product(sum, s, v, 1, st, k, k, v);
		product(sum + k * k, q, 1, 1, q, k, k, 1);
		product(sum + 2 * k * k, st, k, 1, s, v, v, k);
	}
	free(st);
	free(s);
}

static void add_means(void *ctx, const struct mixer_args *a, const struct linattn *mix)
{
	struct means *sums = ctx;
	int heads = mix->heads;
	double *part;

	if (compress_site(sums->c, a) != sums->site)
		return;
	part = xcalloc(sums->size * heads * mix->b, sizeof(*part));
#pragma omp parallel for collapse(2) schedule(dynamic)
	for (int i = 0; i < mix->b; i++)
		for (int h = 0; h < heads; h++) {
			struct rows x = rows_get(mix, i, h);

			add_sequence(part + ((long)i * heads + h) * sums->size, &x);
			rows_free(&x);
		}
	for (int i = 0; i < mix->b; i++)
		for (long e = 0; e < sums->size * heads; e++)
			sums->sum[e] += part[i * sums->size * heads + e];
	free(part);
}

/* ---- states as vectors ---------------------------------------------------------------- */

/* [heads][nr][k * v] of the states with numbers floor(i * all / nr) of all */
struct snapshots {
	struct compress *c;
	struct site *site;
	int64_t all, seen;
	int nr;
	double *x;
};

/* Number of state @n among those taken, -1: it is not. */
static int taken(const struct snapshots *s, int64_t n)
{
	int64_t i = (n * s->nr + s->all - 1) / s->all;

	return i < s->nr && i * s->all / s->nr == n ? i : -1;
}

static void take_sequence(const struct snapshots *s, const struct rows *x, int i, int h)
{
	long size = (long)x->k * x->v;
	double *state = xcalloc(size, sizeof(*state));

	for (int t = 0; t < x->t; t++) {
		int n = taken(s, s->seen + (int64_t)i * x->t + t);

		state_next(state, x, t);
		if (n >= 0)
			memcpy(s->x + ((long)h * s->nr + n) * size, state, sizeof(*state) * size);
	}
	free(state);
}

static void take(void *ctx, const struct mixer_args *a, const struct linattn *mix)
{
	struct snapshots *s = ctx;

	if (compress_site(s->c, a) != s->site)
		return;
#pragma omp parallel for collapse(2) schedule(dynamic)
	for (int i = 0; i < mix->b; i++)
		for (int h = 0; h < mix->heads; h++) {
			struct rows x = rows_get(mix, i, h);

			take_sequence(s, &x, i, h);
			rows_free(&x);
		}
	s->seen += (int64_t)mix->b * mix->t;
}

/*
 * Leading directions [m][size] of @nr vectors: from the smaller of the two matrices of their
 * products. Directions that the vectors do not have come out as 0.
 */
static double *leading(const double *x, int nr, int size, int m)
{
	bool columns = size <= nr;
	int n = columns ? size : nr, found = MIN(m, n);
	double *g = xmalloc(sizeof(*g) * n * n), *lambda = xmalloc(sizeof(*lambda) * found);
	double *vec = xmalloc(sizeof(*vec) * found * n), *w = xcalloc((long)m * size, sizeof(*w));

	products_of_rows(g, x, nr, size, columns);
	eigen(g, n, found, lambda, vec);
	if (columns)
		memcpy(w, vec, sizeof(*w) * found * size);
	else
		product(w, vec, nr, 1, x, found, size, nr);
	orthonormal(w, found, size);
	free(vec);
	free(lambda);
	free(g);
	return w;
}

static void fit_vec(struct compress *c, struct site *site)
{
	struct snapshots s = { .c = c, .site = site, .all = c->full_fit.rows * T_MAX };
	long size = (long)site->mix.dk * site->mix.dv;
	struct eval e;

	s.nr = MIN(SNAPSHOTS, s.all);
	s.x = xcalloc(site->mix.heads * s.nr * size, sizeof(*s.x));
	compress_eval(c, c->fit, &e, take, &s);
	for (int h = 0; h < site->mix.heads; h++)
		site->head[h].vec = leading(s.x + h * s.nr * size, s.nr, size, c->widest);
	free(s.x);
}

/* ---- bases ------------------------------------------------------------------------------ */

static double *copy(const double *x, long n)
{
	return memcpy(xmalloc(sizeof(*x) * n), x, sizeof(*x) * n);
}

/* Below this share of the largest, eigenvalues of C_q are taken for it. */
#define C_Q_LEAST 1e-12

/* y[n][n] = sum over i of f_i e_i e_i^T */
static double *of_vectors(const double *f, const double *e, int n)
{
	double *y = xcalloc((long)n * n, sizeof(*y)), *scaled = copy(e, (long)n * n);

	for (long i = 0; i < (long)n * n; i++)
		scaled[i] *= f[i / n];
	product(y, scaled, 1, n, e, n, n, n);
	free(scaled);
	return y;
}

/* A = C_q^(1/2), Z = top of A M_K A: rows of write are Z^T A, of read Z^T A^-1. */
static void balance(struct head *head, const double *m_k, const double *c_q, int k, int widest)
{
	double *own = copy(c_q, (long)k * k), *e = xmalloc(sizeof(*e) * k * k);
	double *root = xmalloc(sizeof(*root) * k), *inverse = xmalloc(sizeof(*inverse) * k);
	double *half = xcalloc((long)k * k, sizeof(*half)), *both = xcalloc((long)k * k, sizeof(*both));
	double *z = xmalloc(sizeof(*z) * widest * k), *a, *a_inverse;

	head->lambda_q = xmalloc(sizeof(*head->lambda_q) * k);
	eigen(own, k, k, head->lambda_q, e);
	for (int i = 0; i < k; i++) {
		root[i] = sqrt(MAX(head->lambda_q[i], C_Q_LEAST * head->lambda_q[0]));
		inverse[i] = root[i] > 0 ? 1 / root[i] : 0;
	}
	a = of_vectors(root, e, k);
	a_inverse = of_vectors(inverse, e, k);
	product(half, a, k, 1, m_k, k, k, k);
	product(both, half, k, 1, a, k, k, k);
	eigen(both, k, widest, root, z);
	head->write = xcalloc((long)widest * k, sizeof(*head->write));
	head->read = xcalloc((long)widest * k, sizeof(*head->read));
	product(head->write, z, k, 1, a, widest, k, k);
	product(head->read, z, k, 1, a_inverse, widest, k, k);
	for (double *p[] = { own, e, root, inverse, half, both, z, a, a_inverse, NULL }, **at = p; *at;
	     at++)
		free(*at);
}

static double *choose(const double *m_k, const double *c_q, int k, int widest)
{
	double *rows = xcalloc((long)widest * k, sizeof(*rows)), *score = xmalloc(sizeof(*score) * k);

	for (long i = 0; i < k; i++)
		score[i] = m_k[i * k + i] * c_q[i * k + i];
	for (int j = 0; j < widest; j++) {
		int best = 0;

		for (int i = 1; i < k; i++)
			if (score[i] > score[best])
				best = i;
		rows[(long)j * k + best] = 1;
		score[best] = -1;
	}
	free(score);
	return rows;
}

static double *top(const double *mean, int n, int m, double **lambda)
{
	double *a = copy(mean, (long)n * n), *vec = xmalloc(sizeof(*vec) * n * n);

	*lambda = xmalloc(sizeof(**lambda) * n);
	eigen(a, n, n, *lambda, vec);
	free(a);
	return xrealloc(vec, sizeof(*vec) * m * n);
}

static void fit_head(struct head *head, const double *sum, int k, int v, int widest)
{
	int keys = MIN(widest, k);
	const double *c_q = sum + (long)k * k, *m_v = sum + 2 * (long)k * k;

	head->top_k = top(sum, k, keys, &head->lambda_k);
	head->top_v = top(m_v, v, MIN(widest, v), &head->lambda_v);
	head->select = choose(sum, c_q, k, keys);
	balance(head, sum, c_q, k, keys);
}

static void fit_site(struct compress *c, struct site *site)
{
	int k = site->mix.dk, v = site->mix.dv, heads = site->mix.heads;
	struct means sums = { c, site, .size = 2 * (long)k * k + (long)v * v };
	struct eval e;

	sums.sum = xcalloc(sums.size * heads, sizeof(*sums.sum));
	compress_eval(c, c->fit, &e, add_means, &sums);
	for (long i = 0; i < sums.size * heads; i++)
		sums.sum[i] /= (double)c->full_fit.rows * T_MAX;
	site->head = xcalloc(heads, sizeof(*site->head));
	for (int h = 0; h < heads; h++)
		fit_head(&site->head[h], sums.sum + h * sums.size, k, v, c->widest);
	free(sums.sum);
}

static double *draw(const char *which, int i, int m, int n)
{
	double *x = xmalloc(sizeof(*x) * m * n);
	char *name = xasprintf("compress.%s.%d", which, i);

	random_rows(x, m, n, hash_name(name));
	free(name);
	return x;
}

void fit_bases(struct compress *c, bool vec)
{
	for (int i = 0; i < c->nr_sites; i++) {
		struct site *site = &c->site[i];

		fit_site(c, site);
		for (int d = 0; d < DRAWS; d++) {
			site->random_k[d] = draw("key", d, MIN(c->widest, site->mix.dk),
						site->mix.dk);
			site->random_v[d] = draw("value", d, MIN(c->widest, site->mix.dv),
						 site->mix.dv);
		}
		if (vec)
			fit_vec(c, site);
	}
}
