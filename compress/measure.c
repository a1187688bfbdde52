// SPDX-License-Identifier: MIT
/*
 * What each way costs on a split that it was not made from: the error of a head's outputs
 * where every layer reads what it always read, and the model's loss where all heads are
 * compressed at once.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compress.h"
#include "lapack.h"
#include "util.h"

const char *const row_names[NR_ROWS] = { "value", "scalar", "select", "galerkin", "diagonal",
					 "vectorised", "projected" };
const char *const basis_names[NR_BASES] = { "top", "balanced", "random" };

#define BIT(basis) (1u << BASIS_##basis)

/* Of select and vectorised top means their own. */
static const unsigned int bases_of[NR_ROWS] = {
	[ROW_VALUE] = BIT(TOP) | BIT(RANDOM),
	[ROW_SCALAR] = BIT(TOP) | BIT(BALANCED) | BIT(RANDOM),
	[ROW_SELECT] = BIT(TOP),
	[ROW_GALERKIN] = BIT(TOP) | BIT(BALANCED) | BIT(RANDOM),
	[ROW_DIAGONAL] = BIT(TOP) | BIT(RANDOM),
	[ROW_VECTORISED] = BIT(TOP),
	[ROW_PROJECTED] = BIT(TOP) | BIT(BALANCED) | BIT(RANDOM),
};

struct latent latent_of(const struct way *w, const struct site *site, int h)
{
	const struct head *head = &site->head[h];
	const double *write = head->top_k, *read;

	if (w->row == ROW_VALUE)
		write = w->basis == BASIS_RANDOM ? site->random_v[w->draw] : head->top_v;
	else if (w->row == ROW_SELECT)
		write = head->select;
	else if (w->row == ROW_VECTORISED)
		write = head->vec;
	else if (w->basis == BASIS_RANDOM)
		write = site->random_k[w->draw];
	read = write;
	if (w->basis == BASIS_BALANCED) {
		write = head->write;
		read = head->read;
	}
	return (struct latent){ w->row, w->d, write, read };
}

/* Ways that a model has: scalar for one decay a head, value up to the width of values. */
static bool possible(const struct compress *c, const struct way *w)
{
	for (int i = 0; i < c->nr_sites; i++) {
		const struct linattn *mix = &c->site[i].mix;

		if ((w->row == ROW_SCALAR && mix->decay == LINATTN_VECTOR) ||
		    (w->row == ROW_VALUE && w->d > mix->dv))
			return false;
	}
	return true;
}

static void add_ways(struct measure *s, enum row row, enum basis basis)
{
	int draws = basis == BASIS_RANDOM ? DRAWS : 1;

	for (int i = 0; i < s->c->nr_dims; i++)
		for (int draw = 0; draw < draws; draw++) {
			struct way w = { .row = row, .basis = basis, .draw = draw, .d = s->c->dims[i] };

			if (!possible(s->c, &w))
				continue;
			w.error = xcalloc((long)s->heads * SPANS, sizeof(*w.error));
			s->way = xrealloc(s->way, (s->nr + 1) * sizeof(*s->way));
			s->way[s->nr++] = w;
		}
}

static void list(struct measure *s)
{
	s->first = xcalloc(s->c->nr_sites, sizeof(*s->first));
	for (int i = 0; i < s->c->nr_sites; i++) {
		s->first[i] = s->heads;
		s->heads += s->c->site[i].mix.heads;
	}
	s->square = xcalloc((long)s->heads * SPANS, sizeof(*s->square));
	s->spread = xcalloc(s->heads, sizeof(*s->spread));
	for (int row = 0; row < NR_ROWS; row++)
		for (int basis = 0; basis < NR_BASES; basis++)
			if (bases_of[row] & 1u << basis)
				add_ways(s, row, basis);
}

/* ---- errors --------------------------------------------------------------------------- */

/* sum[SPANS] += |o - other|^2; @other NULL: |o|^2 */
static void add_squares(double *sum, const double *o, const double *other, const struct rows *x)
{
	for (long i = 0; i < (long)x->t * x->v; i++) {
		double d = o[i] - (other ? other[i] : 0);

		sum[i / x->v * SPANS / x->t] += d * d;
	}
}

/* Sum of |S|^2 |q|^2. */
static double spread(const struct rows *x)
{
	long size = (long)x->k * x->v;
	double *s = xcalloc(size, sizeof(*s)), sum = 0;

	for (int t = 0; t < x->t; t++) {
		const double *q = x->in.q + (long)t * x->k;

		state_next(s, x, t);
		sum += dot(s, s, size) * dot(q, q, x->k);
	}
	free(s);
	return sum * x->scale * x->scale;
}

/* @part: [nr + 1][SPANS] errors of the ways and squares, then the spread */
static void measure_sequence(const struct measure *s, const struct site *site, int h,
			     const struct rows *x, double *part)
{
	long size = (long)x->t * x->v;
	double *o = xmalloc(sizeof(*o) * size), *other = xmalloc(sizeof(*other) * size);

	latent_run(NULL, x, o);
	for (int i = 0; i < s->nr; i++) {
		struct latent l = latent_of(&s->way[i], site, h);

		latent_run(&l, x, other);
		add_squares(part + i * SPANS, o, other, x);
	}
	add_squares(part + s->nr * SPANS, o, NULL, x);
	part[(s->nr + 1) * SPANS] = spread(x);
	free(other);
	free(o);
}

/* Parts of sequences are added in their order. */
static void add_part(struct measure *s, int head, const double *part)
{
	for (int i = 0; i < s->nr; i++)
		for (int e = 0; e < SPANS; e++)
			s->way[i].error[head * SPANS + e] += part[i * SPANS + e];
	for (int e = 0; e < SPANS; e++)
		s->square[head * SPANS + e] += part[s->nr * SPANS + e];
	s->spread[head] += part[(s->nr + 1) * SPANS];
}

static void measure_errors(void *ctx, const struct mixer_args *a, const struct linattn *mix)
{
	struct measure *s = ctx;
	const struct site *site = compress_site(s->c, a);
	long size = (long)(s->nr + 1) * SPANS + 1;
	double *part = xcalloc(size * mix->b * mix->heads, sizeof(*part));

#pragma omp parallel for collapse(2) schedule(dynamic)
	for (int i = 0; i < mix->b; i++)
		for (int h = 0; h < mix->heads; h++) {
			struct rows x = rows_get(mix, i, h);

			measure_sequence(s, site, h, &x, part + ((long)i * mix->heads + h) * size);
			rows_free(&x);
		}
	for (int i = 0; i < mix->b; i++)
		for (int h = 0; h < mix->heads; h++)
			add_part(s, s->first[site - s->c->site] + h,
				 part + ((long)i * mix->heads + h) * size);
	free(part);
}

/* ---- losses ---------------------------------------------------------------------------- */

struct replacement {
	struct compress *c;
	const struct way *way;
};

static void replace(void *ctx, const struct mixer_args *a, const struct linattn *mix)
{
	const struct replacement *r = ctx;
	const struct site *site = compress_site(r->c, a);

#pragma omp parallel for collapse(2) schedule(dynamic)
	for (int i = 0; i < mix->b; i++)
		for (int h = 0; h < mix->heads; h++) {
			struct rows x = rows_get(mix, i, h);
			struct latent l = latent_of(r->way, site, h);
			double *o = xmalloc(sizeof(*o) * x.t * x.v);

			latent_run(&l, &x, o);
			k_linattn_put(mix, i, h, o);
			free(o);
			rows_free(&x);
		}
}

static double total(const double *x, int n)
{
	double sum = 0;

	for (int i = 0; i < n; i++)
		sum += x[i];
	return sum;
}

struct summary summarise(const struct measure *s, const struct way *w)
{
	int draws = w->basis == BASIS_RANDOM ? DRAWS : 1;
	struct summary m = { .draws = draws };

	for (int i = 0; i < draws; i++) {
		m.error += total(w[i].error, s->heads * SPANS) / draws;
		m.loss += w[i].eval.loss / draws;
		m.ppl += exp(w[i].eval.loss) / draws;
		m.acc += w[i].eval.acc / draws;
	}
	m.error /= total(s->square, s->heads * SPANS);
	return m;
}

static void say(const struct measure *s, const struct way *w)
{
	struct summary m = summarise(s, w);
	char *acc = SYNTHETIC ? xasprintf("  acc %.4f", m.acc) : xstrdup("");

	printf("%-10s %-8s %4d  error %.6f  loss %.6f  ppl %.4f%s\n", row_names[w->row],
	       basis_names[w->basis], w->d, m.error, m.loss, m.ppl, acc);
	fflush(stdout);
	free(acc);
}

void measure_all(struct measure *s, struct compress *c)
{
	*s = (struct measure){ .c = c };
	list(s);
	compress_eval(c, c->test, &c->full, measure_errors, s);
	for (int i = 0; i < s->nr; i++) {
		struct replacement r = { c, &s->way[i] };

		compress_eval(c, c->test, &s->way[i].eval, replace, &r);
		if (i + 1 == s->nr || !s->way[i + 1].draw)
			say(s, &s->way[i - s->way[i].draw]);
	}
}

/*
 * Of the projection onto what a uniform basis leaves out, r = K - d of K directions, the
 * squares of an element on the diagonal are w in the mean, of another one c2.
 */
double random_error(const struct measure *s, const struct way *w, const struct site *site, int head)
{
	double k = site->mix.dk, r = k - w->d, diagonal = r * (r + 2) / (k * (k + 2)), c2;

	if (w->basis == BASIS_RANDOM && w->row == ROW_VALUE)
		return 1 - (double)w->d / site->mix.dv;
	if (w->basis != BASIS_RANDOM || w->row != ROW_PROJECTED)
		return NAN;
	c2 = k > 1 ? (r / k - diagonal) / (k - 1) : 0;
	return diagonal - c2 + c2 * s->spread[head] / total(s->square + head * SPANS, SPANS);
}
