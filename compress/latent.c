// SPDX-License-Identifier: MIT
/*
 * The recurrences on latents, with W = write^T, R = read^T:
 *
 *	value       c [K][d] <- diag(alpha) c + k (W^T v)^T,       o = s W c^T q
 *	diagonal    c [d][V] <- diag(a) c + (W^T k) v^T,           o = s c^T R^T q,
 *	            a_j = sum_i W_ij R_ij alpha_i. Of a scalar alpha that is alpha itself, of
 *	            chosen channels their own: scalar and select are this one too
 *	galerkin    c [d][V] <- W^T diag(alpha) R c + (W^T k) v^T, o as there
 *	vectorised  c [d] <- W^T (alpha * W c + vec(k v^T)),       o from W c
 *	projected   the whole S, o = s S^T W R^T q
 */
#include <stdlib.h>
#include <string.h>

#include "compress.h"
#include "lapack.h"
#include "util.h"

struct rows rows_get(const struct linattn *mix, int i, int h)
{
	size_t keys = (size_t)mix->t * mix->dk;
	double *p = xmalloc(sizeof(*p) * (3 * keys + (size_t)mix->t * mix->dv));
	struct rows x = { mix->t, mix->dk, mix->dv, mix->scale,
			  { .q = p, .k = p + keys, .alpha = p + 2 * keys, .v = p + 3 * keys } };

	k_linattn_get(mix, i, h, &x.in);
	return x;
}

void rows_free(struct rows *x)
{
	free(x->in.q);
}

/* s[i][n] <- alpha_i s[i] + k_i v */
static void decay_and_add(double *s, const double *alpha, const double *k, const double *v, int m,
			  int n)
{
	for (int i = 0; i < m; i++, s += n) {
		double a = alpha[i], key = k[i];

#pragma omp simd
		for (int e = 0; e < n; e++)
			s[e] = a * s[e] + key * v[e];
	}
}

void state_next(double *s, const struct rows *x, int t)
{
	decay_and_add(s, x->in.alpha + (long)t * x->k, x->in.k + (long)t * x->k,
		      x->in.v + (long)t * x->v, x->k, x->v);
}

/* y[m] = a[m][n] x */
static void apply(double *y, const double *a, const double *x, int m, int n)
{
	for (int i = 0; i < m; i++)
		y[i] = dot(a + (long)i * n, x, n);
}

/* o[v] = scale c[m][v]^T y */
static void read_out(double *o, const double *c, const double *y, int m, const struct rows *x)
{
	memset(o, 0, sizeof(*o) * x->v);
	product(o, y, 0, 1, c, 1, x->v, m);
	for (int e = 0; e < x->v; e++)
		o[e] *= x->scale;
}

static double *zeros(long n)
{
	return xcalloc(n, sizeof(double));
}

static void run_full(const struct rows *x, const double *q, double *o)
{
	double *s = zeros((long)x->k * x->v);

	for (int t = 0; t < x->t; t++) {
		state_next(s, x, t);
		read_out(o + (long)t * x->v, s, q + (long)t * x->k, x->k, x);
	}
	free(s);
}

static void run_projected(const struct latent *l, const struct rows *x, double *o)
{
	double *q = zeros((long)x->t * x->k), *y = zeros(l->d);

	for (int t = 0; t < x->t; t++) {
		apply(y, l->read, x->in.q + (long)t * x->k, l->d, x->k);
		product(q + (long)t * x->k, y, 0, 1, l->write, 1, x->k, l->d);
	}
	run_full(x, q, o);
	free(y);
	free(q);
}

static void run_value(const struct latent *l, const struct rows *x, double *o)
{
	double *c = zeros((long)x->k * l->d), *v = zeros(l->d), *y = zeros(l->d);

	for (int t = 0; t < x->t; t++) {
		long at = (long)t * x->k;

		apply(v, l->write, x->in.v + (long)t * x->v, l->d, x->v);
		decay_and_add(c, x->in.alpha + at, x->in.k + at, v, x->k, l->d);
		memset(y, 0, sizeof(*y) * l->d);
		product(y, x->in.q + at, 0, 1, c, 1, l->d, x->k);
		read_out(o + (long)t * x->v, l->write, y, l->d, x);
	}
	free(y);
	free(v);
	free(c);
}

static void run_diagonal(const struct latent *l, const struct rows *x, double *o)
{
	double *c = zeros((long)l->d * x->v), *k = zeros(l->d), *y = zeros(l->d);
	double *alpha = zeros(l->d), *both = zeros((long)l->d * x->k);

	for (long i = 0; i < (long)l->d * x->k; i++)
		both[i] = l->write[i] * l->read[i];
	for (int t = 0; t < x->t; t++) {
		long at = (long)t * x->k;

		apply(alpha, both, x->in.alpha + at, l->d, x->k);
		apply(k, l->write, x->in.k + at, l->d, x->k);
		apply(y, l->read, x->in.q + at, l->d, x->k);
		decay_and_add(c, alpha, k, x->in.v + (long)t * x->v, l->d, x->v);
		read_out(o + (long)t * x->v, c, y, l->d, x);
	}
	free(both);
	free(alpha);
	free(y);
	free(k);
	free(c);
}

/* to[n][m] = from[m][n] */
static void transpose(double *to, const double *from, int m, int n)
{
	for (int i = 0; i < m; i++)
		for (int j = 0; j < n; j++)
			to[(long)j * m + i] = from[(long)i * n + j];
}

static void run_galerkin(const struct latent *l, const struct rows *x, double *o)
{
	long d = l->d, size = d * x->v;
	double *c = zeros(size), *next = zeros(size), *k = zeros(d), *y = zeros(d);
	double *move = zeros(d * d), *write = zeros(d * x->k), *read = zeros(x->k * d), *swap;

	transpose(read, l->read, d, x->k);
	for (int t = 0; t < x->t; t++) {
		const double *alpha = x->in.alpha + (long)t * x->k;

		for (long i = 0; i < d * x->k; i++)
			write[i] = l->write[i] * alpha[i % x->k];
		memset(move, 0, sizeof(*move) * d * d);
		product(move, write, x->k, 1, read, d, d, x->k);
		apply(k, l->write, x->in.k + (long)t * x->k, d, x->k);
		apply(y, l->read, x->in.q + (long)t * x->k, d, x->k);
		memset(next, 0, sizeof(*next) * size);
		product(next, move, d, 1, c, d, x->v, d);
		product(next, k, 1, 1, x->in.v + (long)t * x->v, d, x->v, 1);
		swap = c, c = next, next = swap;
		read_out(o + (long)t * x->v, c, y, d, x);
	}
	for (double *p[] = { c, next, k, y, move, write, read, NULL }, **at = p; *at; at++)
		free(*at);
}

static void run_vectorised(const struct latent *l, const struct rows *x, double *o)
{
	long size = (long)x->k * x->v;
	double *s = zeros(size), *c = zeros(l->d);

	for (int t = 0; t < x->t; t++) {
		state_next(s, x, t);
		apply(c, l->write, s, l->d, size);
		memset(s, 0, sizeof(*s) * size);
		product(s, c, 0, 1, l->write, 1, size, l->d);
		read_out(o + (long)t * x->v, s, x->in.q + (long)t * x->k, x->k, x);
	}
	free(c);
	free(s);
}

void latent_run(const struct latent *l, const struct rows *x, double *o)
{
	static void (*const run[NR_ROWS])(const struct latent *l, const struct rows *x, double *o) = {
		[ROW_VALUE] = run_value, [ROW_SCALAR] = run_diagonal,
		[ROW_SELECT] = run_diagonal, [ROW_GALERKIN] = run_galerkin,
		[ROW_DIAGONAL] = run_diagonal, [ROW_VECTORISED] = run_vectorised,
		[ROW_PROJECTED] = run_projected,
	};

	if (l)
		run[l->row](l, x, o);
	else
		run_full(x, x->in.q, o);
}
