/* SPDX-License-Identifier: MIT */
/*
 * Dense attention in double and strided, guarded tensors around it: what the tests
 * of attention and of routing share.
 */
#ifndef TENON_ATTN_REF_H
#define TENON_ATTN_REF_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "device.h"
#include "kernels.h"
#include "real.h"
#include "tap.h"
#include "util.h"

/*
 * An element is a few chained sums of at most 260 terms (positions, then widths)
 * of order one. Each rounds by half an epsilon of its partial sum; signs are
 * random, so errors grow with the root of the count and the exponential turns an
 * absolute error of a score into a relative one. 400 epsilons of the largest
 * element leave a factor of about 8: 9e-14 in double, 5e-5 in float. What is bf16 was
 * rounded, and delta = <d_o, o> is of outputs that were: twice these two roundings of
 * the largest element.
 */
#define SUM_ERROR (400 * (sizeof(acc_t) == 8 ? 0x1p-52 : 0x1p-23))
#define TOLERANCE (SUM_ERROR + 2 * 2 * ACT_ROUND)

enum { GUARD = 64, GAP = 3 };	/* elements around a buffer, between its rows */

struct shape {
	int b, t, heads, dk, dv;
	bool one_k, one_v, joint, gamma;	/* joint: q, k, v in one row, as c_attn */
	double ra_scale;
	int window;
	int group;	/* query heads of a key and value head; 0: 1 */
	bool aligned;	/* rows that begin at multiples of 16 bytes, where widths do */
};

/* A buffer of act_t or acc_t between guards, everything NaN. */
struct buf {
	void *all, *p;
	size_t n, elem;
};

/* Everything of a case; grads in the order q, k, v. */
struct work {
	struct attn a;
	struct buf q, k, v, o, lse, gamma, dq, dk, dv, dgamma, d_o, delta;
};

/* Dense reference, [b][t][heads][width], shared tensors with 1 head. */
struct ref {
	double *q, *k, *v, *gamma, *d_o;
	double *p;	/* [b][heads][t][t] */
	double *o, *lse, *dq, *dk, *dv, *dgamma;
};

static uint64_t seed = 1;

static inline double uniform(void)	/* -1..1 */
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (double)(int64_t)seed * 0x1p-63;
}

static inline struct buf buf_of(size_t n, size_t elem)
{
	struct buf b = { xmalloc((n + 2 * GUARD) * elem), NULL, n, elem };

	for (size_t i = 0; i < n + 2 * GUARD; i++)
		put(b.all, elem, i, NAN);
	b.p = (char *)b.all + GUARD * elem;
	return b;
}

static inline struct buf buf_new(size_t n)
{
	return buf_of(n, ACT);
}

static inline struct buf buf_new_acc(size_t n)
{
	return buf_of(n, ACC);
}

/* From element @at on, without guards of its own. */
static inline struct buf buf_part(struct buf b, size_t at)
{
	return (struct buf){ NULL, (char *)b.p + at * b.elem, 0, b.elem };
}

static inline void buf_clear(struct buf b)
{
	for (size_t i = 0; i < b.n; i++)
		put(b.p, b.elem, i, NAN);
}

static inline bool buf_guarded(struct buf b)
{
	for (int i = 0; i < GUARD; i++)
		if (!isnan(get(b.all, b.elem, i)) || !isnan(get(b.p, b.elem, b.n + i)))
			return false;
	return true;
}

static inline double *dense(size_t n)
{
	return xcalloc(n, sizeof(double));
}

/* Random values at [row][head][e] of the strided tensor p, the same in ref. */
static inline void fill(double *ref, struct buf b, long rows, long stride, int heads, long head,
			int width, double size)
{
	for (long r = 0; r < rows; r++)
		for (int h = 0; h < heads; h++)
			for (int e = 0; e < width; e++) {
				long at = r * stride + h * head + e;

				put(b.p, b.elem, at, size * uniform());
				ref[(r * heads + h) * width + e] = get(b.p, b.elem, at);
			}
}

/*
 * Largest difference to ref, against its largest element, but at least FLOOR: a
 * gradient that cancels (one position) keeps the round-off of its terms. NaN
 * counts as 1. Of bf16 the terms, of order one, hold outputs that were rounded.
 */
#define FLOOR (ACT == ACC ? 0.1 : 1)

static inline double distance_of(const double *ref, const void *p, size_t elem, long rows,
				 long stride, int heads, long head, int width)
{
	double worst = 0, size = FLOOR, want, d;

	for (long r = 0; r < rows; r++)
		for (int h = 0; h < heads; h++)
			for (int e = 0; e < width; e++) {
				want = ref[(r * heads + h) * width + e];
				d = fabs(get(p, elem, r * stride + h * head + e) - want);
				if (isnan(d))
					return 1;
				worst = fmax(worst, d);
				size = fmax(size, fabs(want));
			}
	return worst / size;
}

static inline double distance(const double *ref, struct buf b, long rows, long stride,
			      int heads, long head, int width)
{
	return distance_of(ref, b.p, b.elem, rows, stride, heads, head, width);
}

/* Elements of the rows that belong to no head must still be NaN. */
static inline bool gaps_kept(struct buf b, long rows, long stride, long used)
{
	for (long r = 0; r < rows - 1; r++)
		for (long e = used; e < stride; e++)
			if (!isnan(get(b.p, b.elem, r * stride + e)))
				return false;
	return true;
}

static inline int group_of(const struct shape *s)
{
	return MAX(s->group, 1);
}

/* Elements between the rows of a tensor. */
static inline int gap_of(const struct shape *s)
{
	return s->aligned ? 8 : GAP;
}

static inline int k_heads(const struct shape *s)
{
	return s->one_k ? 1 : s->heads / group_of(s);
}

static inline int v_heads(const struct shape *s)
{
	return s->one_v ? 1 : s->heads / group_of(s);
}

/* Key, and value, that query head h uses. */
static inline int k_of(const struct shape *s, int h)
{
	return s->one_k ? 0 : h / group_of(s);
}

static inline int v_of(const struct shape *s, int h)
{
	return s->one_v ? 0 : h / group_of(s);
}

static inline double ref_score(const struct shape *s, const struct ref *r, int i, int h, int t,
			       int u)
{
	int kh = k_of(s, h);
	double x = 0, y = 0;

	for (int e = 0; e < s->dk; e++) {
		x += r->q[(((long)i * s->t + t) * s->heads + h) * s->dk + e] *
			r->k[(((long)i * s->t + u) * k_heads(s) + kh) * s->dk + e];
		y += r->q[(((long)i * s->t + u) * s->heads + h) * s->dk + e] *
			r->k[(((long)i * s->t + t) * k_heads(s) + kh) * s->dk + e];
	}
	return x / sqrt(s->dk) + (t - u <= s->window ? s->ra_scale * y : 0);
}

static inline double *ref_p(const struct shape *s, const struct ref *r, int i, int h, int t)
{
	return r->p + (((long)i * s->heads + h) * s->t + t) * s->t;
}

/* One row of one head: P, lse, o. */
static inline void ref_row(const struct shape *s, struct ref *r, int i, int h, int t)
{
	double *p = ref_p(s, r, i, h, t), max = -INFINITY, sum = 0, *v;
	long row = ((long)i * s->t + t) * s->heads + h;

	for (int u = 0; u <= t; u++) {
		p[u] = ref_score(s, r, i, h, t, u);
		max = fmax(max, p[u]);
	}
	for (int u = 0; u <= t; u++)
		sum += p[u] = exp(p[u] - max);
	r->lse[row] = max + log(sum);
	for (int e = 0; e < s->dv; e++)
		r->o[row * s->dv + e] = 0;
	for (int u = 0; u <= t; u++) {
		p[u] /= sum;
		v = r->v + (((long)i * s->t + u) * v_heads(s) + v_of(s, h)) * s->dv;
		for (int e = 0; e < s->dv; e++)
			r->o[row * s->dv + e] += r->gamma[row] * p[u] * v[e];
	}
}

static inline void ref_forward(const struct shape *s, struct ref *r)
{
	for (int i = 0; i < s->b; i++)
		for (int h = 0; h < s->heads; h++)
			for (int t = 0; t < s->t; t++)
				ref_row(s, r, i, h, t);
}

static inline struct ref ref_new(const struct shape *s)
{
	size_t rows = (size_t)s->b * s->t, heads = rows * s->heads;

	return (struct ref) {
		.q = dense(heads * s->dk), .k = dense(rows * k_heads(s) * s->dk),
		.v = dense(rows * v_heads(s) * s->dv), .gamma = dense(heads),
		.d_o = dense(heads * s->dv), .p = dense(heads * s->t),
		.o = dense(heads * s->dv), .lse = dense(heads), .dq = dense(heads * s->dk),
		.dk = dense(rows * k_heads(s) * s->dk), .dv = dense(rows * v_heads(s) * s->dv),
		.dgamma = dense(heads),
	};
}

static inline void ref_free(struct ref *r)
{
	double *all[] = { r->q, r->k, r->v, r->gamma, r->d_o, r->p, r->o, r->lse, r->dq, r->dk,
			  r->dv, r->dgamma };

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		free(all[i]);
}

/* Buffers and strides; joint: q, k and v of a position in one row. */
static inline struct work work_new(const struct shape *s)
{
	size_t rows = (size_t)s->b * s->t, heads = rows * s->heads;
	long nq = (long)s->heads * s->dk, nk = (long)k_heads(s) * s->dk;
	long nv = (long)v_heads(s) * s->dv, one = nq + nk + nv;
	struct work w = { .a = {
		.b = s->b, .t = s->t, .heads = s->heads, .group = group_of(s), .dk = s->dk,
		.dv = s->dv,
		.q_row = s->joint ? one : nq + gap_of(s), .q_head = s->dk,
		.k_row = s->joint ? one : nk + gap_of(s), .k_head = s->one_k ? 0 : s->dk,
		.v_row = s->joint ? one : nv + gap_of(s), .v_head = s->one_v ? 0 : s->dv,
		.o_row = s->heads * s->dv + gap_of(s), .o_head = s->dv,
		.scale = 1 / sqrt(s->dk), .ra_scale = s->ra_scale, .ra_window = s->window,
	} };

	w.q = buf_new(rows * w.a.q_row);
	w.dq = buf_new(rows * w.a.q_row);
	w.k = s->joint ? buf_part(w.q, nq) : buf_new(rows * w.a.k_row);
	w.dk = s->joint ? buf_part(w.dq, nq) : buf_new(rows * w.a.k_row);
	w.v = s->joint ? buf_part(w.q, nq + nk) : buf_new(rows * w.a.v_row);
	w.dv = s->joint ? buf_part(w.dq, nq + nk) : buf_new(rows * w.a.v_row);
	w.o = buf_new(rows * w.a.o_row);
	w.d_o = buf_new(rows * w.a.o_row);
	w.lse = buf_new_acc(heads);
	w.gamma = buf_new_acc(heads);
	w.dgamma = buf_new_acc(heads);
	w.delta = buf_new_acc(heads + rows * ATTN_SUMS(one));
	w.a.q = w.q.p;
	w.a.k = w.k.p;
	w.a.v = w.v.p;
	w.a.o = w.o.p;
	w.a.lse = w.lse.p;
	w.a.gamma = s->gamma ? w.gamma.p : NULL;
	return w;
}

static inline void work_free(struct work *w)
{
	struct buf all[] = { w->q, w->k, w->v, w->o, w->lse, w->gamma, w->dq, w->dk, w->dv,
			     w->dgamma, w->d_o, w->delta };

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		free(all[i].all);
}

static inline void work_fill(const struct shape *s, struct work *w, struct ref *r)
{
	long rows = (long)s->b * s->t;

	fill(r->q, w->q, rows, w->a.q_row, s->heads, s->dk, s->dk, 2);
	fill(r->k, w->k, rows, w->a.k_row, k_heads(s), s->dk, s->dk, 2);
	fill(r->v, w->v, rows, w->a.v_row, v_heads(s), s->dv, s->dv, 1);
	fill(r->d_o, w->d_o, rows, w->a.o_row, s->heads, s->dv, s->dv, 1);
	fill(r->gamma, w->gamma, rows, s->heads, s->heads, 1, 1, 1);
	put(w->gamma.p, ACC, 0, 0);	/* a closed gate */
	r->gamma[0] = 0;
	for (long i = 0; !s->gamma && i < rows * s->heads; i++)
		r->gamma[i] = 1;
}

static inline void name_shape(char *to, size_t n, const struct shape *s)
{
	snprintf(to, n, "b %d t %d heads %d / %d dk %d%s dv %d%s%s%s%s ra %g window %d", s->b,
		 s->t, s->heads, group_of(s), s->dk, s->one_k ? " (one)" : "", s->dv,
		 s->one_v ? " (one)" : "", s->joint ? " joint" : "", s->gamma ? " gamma" : "",
		 s->aligned ? " aligned" : "", s->ra_scale, s->window);
}

#endif
