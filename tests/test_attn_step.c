/* SPDX-License-Identifier: MIT */
/*
 * k_attn_step(), position by position through a cache, against the dense forward. The
 * sequences stand at different positions, and begin again at the end.
 */
#include <omp.h>
#include <string.h>

#include "attn_ref.h"

/* A cache of one sequence: a ring of queries, keys, values. */
struct cache {
	act_t *all;
	long ring, k, v, stride;
};

static struct cache cache_new(const struct shape *s)
{
	struct cache c = { .k = (long)(s->window + 1) * s->heads * s->dk };

	c.v = c.k + (long)s->t * k_heads(s) * s->dk;
	c.stride = c.v + (long)s->t * v_heads(s) * s->dv + GAP;
	c.all = xcalloc(s->b * c.stride, sizeof(act_t));
	return c;
}

static void cache_append(const struct shape *s, struct cache *c, const struct work *w, int i, int t)
{
	act_t *at = c->all + i * c->stride;
	const struct attn *a = &w->a;
	long row = (long)i * s->t + t;

	memcpy(at + (long)(t % (s->window + 1)) * s->heads * s->dk, a->q + row * a->q_row,
	       s->heads * s->dk * sizeof(act_t));
	memcpy(at + c->k + (long)t * k_heads(s) * s->dk, a->k + row * a->k_row,
	       k_heads(s) * s->dk * sizeof(act_t));
	memcpy(at + c->v + (long)t * v_heads(s) * s->dv, a->v + row * a->v_row,
	       v_heads(s) * s->dv * sizeof(act_t));
}

/* Buffers of one step: a row of each sequence. */
struct step {
	struct buf q, o, gamma, route;
	long nq, no, stride;	/* elements of a row of q, o and route */
};

static struct step step_new(const struct shape *s, const struct work *w, const int32_t *pos)
{
	long nq = (long)s->heads * s->dk, no = (long)s->heads * s->dv, row;
	struct step e = {
		buf_new(s->b * nq), buf_new(s->b * no), buf_new_acc(s->b * s->heads),
		buf_new_acc((size_t)s->b * s->heads * (s->t + GAP)), nq, no, s->t + GAP,
	};

	for (int i = 0; i < s->b; i++) {
		row = (long)i * s->t + pos[i];
		memcpy((act_t *)e.q.p + i * nq, w->a.q + row * w->a.q_row, nq * sizeof(act_t));
		memcpy((acc_t *)e.gamma.p + i * s->heads, (acc_t *)w->gamma.p + row * s->heads,
		       s->heads * sizeof(acc_t));
	}
	return e;
}

static void step_free(struct step *e)
{
	free(e->q.all);
	free(e->o.all);
	free(e->gamma.all);
	free(e->route.all);
}

/* Distance of sequence i at position t, of outputs and rows of P. */
static double sequence_distance(const struct shape *s, const struct step *e, const struct ref *r,
				int i, int t)
{
	long row = (long)i * s->t + t;
	double worst = distance(r->o + row * e->no, buf_part(e->o, i * e->no), 1, 0, s->heads,
				s->dv, s->dv);
	struct buf route = buf_part(e->route, (size_t)i * s->heads * e->stride);
	double *p = dense(t + 1), g;

	for (int h = 0; h < s->heads; h++) {
		g = r->gamma[row * s->heads + h];
		for (int u = 0; u <= t; u++)
			p[u] = g * ref_p(s, r, i, h, t)[u];
		worst = fmax(worst, distance(p, buf_part(route, h * e->stride), 1, 0, 1, 0, t + 1));
	}
	free(p);
	return gaps_kept(route, s->heads, e->stride, t + 1) ? worst : 1;
}

/* Position pos[i] of each sequence through the cache; the distance to the reference. */
static double step_distance(const struct shape *s, struct cache *c, const struct work *w,
			    const struct ref *r, const int32_t *pos)
{
	struct step e = step_new(s, w, pos);
	double worst = 0;

	k_attn_step(&(struct attn_step) {
		.b = s->b, .heads = s->heads, .group = group_of(s), .dk = s->dk, .dv = s->dv,
		.t_max = s->t, .pos = pos, .q = e.q.p, .q_row = (long)s->heads * s->dk,
		.k = c->all + c->k, .k_row = (long)k_heads(s) * s->dk, .k_head = w->a.k_head,
		.v = c->all + c->v, .v_row = (long)v_heads(s) * s->dv, .v_head = w->a.v_head,
		.cache_stride = c->stride, .o = e.o.p, .gamma = s->gamma ? e.gamma.p : NULL,
		.scale = w->a.scale, .ra_scale = s->ra_scale, .ra_window = s->window,
		.ring = c->all, .route = e.route.p, .route_stride = e.stride,
	});
	arch_sync();
	for (int i = 0; i < s->b; i++)
		worst = fmax(worst, sequence_distance(s, &e, r, i, pos[i]));
	if (!buf_guarded(e.o) || !buf_guarded(e.route))
		worst = 1;
	step_free(&e);
	return worst;
}

/* Every position at the start and around the edges of tiles, some between. */
static bool is_checked(int t)
{
	return t < 4 || (t + 2) % 64 < 4 || t % 17 == 0;
}

static double step_worst(const struct shape *s, const struct work *w, const struct ref *r)
{
	struct cache c = cache_new(s);
	int32_t pos[2] = { 0, 71 % s->t };
	double worst = 0;
	bool check;

	for (int i = 0; i < s->b; i++)
		for (int u = 0; u < pos[i]; u++)
			cache_append(s, &c, w, i, u);
	for (int n = 0; n < s->t; n++) {
		check = false;
		for (int i = 0; i < s->b; i++) {
			cache_append(s, &c, w, i, pos[i]);
			check |= is_checked(pos[i]);
		}
		if (check)
			worst = fmax(worst, step_distance(s, &c, w, r, pos));
		for (int i = 0; i < s->b; i++)
			pos[i] = (pos[i] + 1) % s->t;
	}
	free(c.all);
	return worst;
}

static void test_shape(const struct shape *s)
{
	struct work w = work_new(s);
	struct ref r = ref_new(s);
	char name[160];
	double d;

	work_fill(s, &w, &r);
	ref_forward(s, &r);
	d = step_worst(s, &w, &r);
	name_shape(name, sizeof(name), s);
	if (!ok(d <= TOLERANCE, "attn_step_matches_dense: %s", name))
		diag("distance %.2e", d);
	ref_free(&r);
	work_free(&w);
}

/* ---- latents: one cached row is key and value of all heads ------------------------ */

enum { LATENT_SEQS = 3 };

/* Rows of [values | keys] or, @one, keys whose first @dv elements are the values. */
struct latent {
	int heads, group, dk, dv, t;
	bool one;
};

static int latent_row(const struct latent *l)
{
	return l->heads / l->group * (l->one ? l->dk : l->dv + l->dk);
}

/* Key of head @h at @u; values stand at its beginning or, in a row of both, before all keys. */
static const act_t *latent_key(const struct latent *l, const act_t *cache, int u, int h)
{
	int units = l->heads / l->group;

	return cache + (long)u * latent_row(l) + (l->one ? 0 : units * l->dv) +
	       h / l->group * l->dk;
}

static const act_t *latent_value(const struct latent *l, const act_t *cache, int u, int h)
{
	return cache + (long)u * latent_row(l) + h / l->group * (l->one ? l->dk : l->dv);
}

/* Largest distance of a head's output, relative to its values' largest weighted sum. */
static double latent_distance(const struct latent *l, const act_t *cache, const act_t *q,
			      const act_t *o, int pos, int h, double scale)
{
	double *p = dense(pos + 1), sum = 0, top = -INFINITY, worst = 0;

	for (int u = 0; u <= pos; u++) {
		for (int e = 0; e < l->dk; e++)
			p[u] += scale * real(q[h * l->dk + e]) * real(latent_key(l, cache, u, h)[e]);
		top = fmax(top, p[u]);
	}
	for (int u = 0; u <= pos; u++)
		sum += p[u] = exp(p[u] - top);
	for (int e = 0; e < l->dv; e++) {
		double want = 0, size = 0, off;

		for (int u = 0; u <= pos; u++) {
			double term = p[u] / sum * real(latent_value(l, cache, u, h)[e]);

			want += term;
			size += fabs(term);
		}
		off = fabs(real(o[h * l->dv + e]) - want) / size;
		worst = fmax(worst, isnan(off) ? 1 : off);
	}
	free(p);
	return worst;
}

static void test_latent(const struct latent *l, const int32_t *pos)
{
	long stride = (long)l->t * latent_row(l) + 8, nq = (long)l->heads * l->dk;
	struct buf cache = buf_new(LATENT_SEQS * stride), q = buf_new(LATENT_SEQS * nq);
	struct buf o = buf_new((size_t)LATENT_SEQS * l->heads * l->dv);
	double scale = 1 / sqrt(l->dk), worst = 0;
	const act_t *k = latent_key(l, cache.p, 0, 0), *v = latent_value(l, cache.p, 0, 0);

	for (int i = 0; i < LATENT_SEQS; i++) {
		for (long e = 0; e < (long)(pos[i] + 1) * latent_row(l); e++)
			((act_t *)cache.p)[i * stride + e] = act(rng_normal(3, 1, i * stride + e));
		for (long e = 0; e < nq; e++)
			((act_t *)q.p)[i * nq + e] = act(rng_normal(3, 2, i * nq + e));
	}
	k_attn_step(&(struct attn_step) {
		.b = LATENT_SEQS, .heads = l->heads, .group = l->group, .dk = l->dk, .dv = l->dv,
		.t_max = l->t, .pos = pos, .q = q.p, .q_row = nq, .k = k, .k_row = latent_row(l),
		.k_head = l->group < l->heads ? l->dk : 0, .v = v, .v_row = latent_row(l),
		.v_head = l->group < l->heads ? (l->one ? l->dk : l->dv) : 0,
		.cache_stride = stride, .o = o.p, .scale = scale });
	arch_sync();
	for (int i = 0; i < LATENT_SEQS; i++)
		for (int h = 0; h < l->heads; h++)
			worst = fmax(worst, latent_distance(l, (act_t *)cache.p + i * stride,
							    (act_t *)q.p + i * nq,
							    (act_t *)o.p + (long)i * l->heads * l->dv,
							    pos[i], h, scale));
	if (!ok(worst <= TOLERANCE && buf_guarded(o), "attn_step_of_latents: %d heads, %d share, "
		"%d and %d wide, %d positions%s", l->heads, l->group, l->dk, l->dv, l->t,
		l->one ? ", values in keys" : ""))
		diag("distance %.2e", worst);
	free(cache.all), free(q.all), free(o.all);
}

static void test_latents(void)
{
	static const struct latent shapes[] = {
		{ 12, 12, 256, 256, 700, true }, { 12, 12, 272, 256, 1030, true },
		{ 12, 12, 128, 128, 2050, false }, { 8, 8, 208, 192, 300, true },
		{ 5, 5, 40, 24, 90, true }, { 20, 20, 64, 64, 40, true },
		{ 16, 4, 64, 64, 500, false }, { 4, 4, 576, 512, 70, true },
		{ 6, 6, 336, 328, 33, false }, { 5, 5, 33, 24, 90, true },
	};
	static const int32_t last[][LATENT_SEQS] = { { 0, 17, -1 }, { 14, 15, 16 } };

	for (size_t n = 0; n < ARRAY_SIZE(shapes); n++) {
		static int32_t pos[LATENT_SEQS];

		for (int i = 0; i < LATENT_SEQS; i++)
			pos[i] = last[n % 2][i] < 0 ? shapes[n].t - 1 : last[n % 2][i];
		test_latent(&shapes[n], pos);
	}
}

int main(void)
{
	static const int length[] = { 1, 2, 64, 66, 300 };
	static const int width[][2] = { { 5, 7 }, { 16, 16 }, { 64, 33 }, { 8, 70 }, { 1, 1 } };
	static const int window[] = { -1, 0, 1, 7, 300 };	/* -1: no reciprocal term */
	struct shape s;
	int n = 0;

	/* a loaded machine is slow with threads that wait; runs of keys get two at the end */
	device_open(1);
	for (size_t l = 0; l < ARRAY_SIZE(length); l++)
		for (size_t i = 0; i < ARRAY_SIZE(window); i++)
			for (int share = 0; share < 6; share++, n++) {
				s = (struct shape) {
					.b = 1 + n % 2, .t = length[l],
					.heads = share > 3 ? 4 + n % 2 * 2 : n % 3 ? 3 : 1,
					.group = share > 3 ? 2 : 1,
					.dk = width[n % 5][0], .dv = width[n % 5][1],
					.one_k = share & 1, .one_v = share & 2,
					.gamma = n / 8 % 2 == 0,
					.ra_scale = window[i] < 0 ? 0 : 0.3,
					.window = MAX(window[i], 0),
				};
				if (s.t > 256)
					omp_set_num_threads(2);
				test_shape(&s);
			}
	test_latents();
	return tap_done();
}
