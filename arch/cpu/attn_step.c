// SPDX-License-Identifier: MIT
/*
 * Attention of one new query per sequence against its cache. The past is cut into
 * runs of keys of fixed length, one thread each, whose maxima, sums and outputs
 * are put together in order at the end; all heads use a run's keys while they are
 * near.
 */
#include <omp.h>

#include "attn.h"
#include "math.h"
#include "thin.h"

enum {
	RUN = 2 * TILE,		/* keys of a run */
	NEAR = 8,		/* keys whose rows are walked together, all heads */
};

/* One run's result and a thread's scratch. */
struct step {
	acc_t *max;		/* [heads] */
	acc_t *sum;		/* [heads] */
	acc_t *o;		/* [heads][dv], relative to max */
	acc_t *s;		/* [heads][TILE] scores, then exponentials */
	acc_t *kt;		/* [dk][TILE] keys transposed, times scale */
	acc_t *v;		/* [TILE][tile_width(dv)] */
	acc_t *left;		/* tile_left(heads, dk) */
};

/* Runs that the longest sequence takes; shorter ones leave their last ones empty. */
static int step_runs(const struct attn_step *a)
{
	int most = 0;

	for (int i = 0; i < a->b; i++)
		most = MAX(most, a->pos[i]);
	return most / RUN + 1;
}

/* Elements of a run's result, and of a thread's scratch. */
static size_t step_part(const struct attn_step *a)
{
	return ROUND_UP((size_t)a->heads * (a->dv + 2), LANES);
}

static size_t step_work(const struct attn_step *a)
{
	return TILE * ((size_t)a->heads + a->dk + tile_width(a->dv)) + tile_left(a->heads, a->dk);
}

static struct step step_at(const struct attn_step *a, acc_t *scratch, int parts, int part,
			   int thread)
{
	struct step w;

	w.max = scratch + part * step_part(a);
	w.sum = w.max + a->heads;
	w.o = w.sum + a->heads;
	w.s = scratch + (size_t)parts * step_part(a) + thread * step_work(a);
	w.kt = w.s + (size_t)a->heads * TILE;
	w.v = w.kt + (size_t)a->dk * TILE;
	w.left = w.v + TILE * tile_width(a->dv);
	return w;
}

/*
 * Heads that share no key: each key is read once, where it lies, a few rows of the cache
 * at a time.
 */
static void step_products_apart(struct step *w, const struct attn_step *a, int i,
				const act_t *k, int nu)
{
	long ld = a->dk;
	const thin_t *q = thin_widen(a->q + i * a->q_row, &ld, a->heads, a->dk, w->left);

	for (int u = 0; u < nu; u += NEAR)
		for (int h = 0; h < a->heads; h++)
			thin_gemm(1, MIN(NEAR, nu - u), a->dk, a->scale, q + h * ld, ld,
				  k + u * a->k_row + h * a->k_head, a->k_row, 0,
				  w->s + (long)h * TILE + u, TILE);
}

/* Heads that share a key: packed once for all of them. */
static void step_products(struct step *w, const struct attn_step *a, int i, int u0, int nu,
			  int group)
{
	const act_t *k = a->k + i * a->cache_stride;

	for (int h = 0; h < a->heads; h += group) {
		tile_pack_t(w->kt, k + u0 * a->k_row + h / a->group * a->k_head, a->k_row, nu,
			    a->dk, a->scale);
		tile_mul_act(&(struct tile_mul) {
			.m = group, .n = nu, .k = a->dk, .b = w->kt, .ldb = TILE,
			.c = w->s + (long)h * TILE, .ldc = TILE, .pad = true,
		}, a->q + i * a->q_row + h * a->dk, a->dk, w->left);
	}
}

/* Scores of keys [u0, u0 + nu) for all heads. */
static void step_scores(struct step *w, const struct attn_step *a, int i, int u0, int nu)
{
	const act_t *k = a->k + i * a->cache_stride, *own = k + a->pos[i] * a->k_row, *ring;
	int group = attn_sharers(a->heads, a->group, a->k_head), slots;

	if (group == 1)
		step_products_apart(w, a, i, k + u0 * a->k_row, nu);
	else
		step_products(w, a, i, u0, nu, group);
	if (a->ra_scale == 0)
		return;
	ring = a->ring + i * a->cache_stride;
	slots = a->ra_window + 1;
	for (int u = MAX(0, a->pos[i] - a->ra_window - u0); u < nu; u++)
		for (int h = 0; h < a->heads; h++)
			w->s[h * TILE + u] += (acc_t)a->ra_scale *
				tile_dot(ring + ((long)((u0 + u) % slots) * a->heads + h) * a->dk,
					 own + h / a->group * a->k_head, a->dk);
}

/* Scores of one head to exponentials; its older sums follow the new maximum. */
static void step_softmax(struct step *w, const struct attn_step *a, int h, int nu)
{
	acc_t *s = w->s + (long)h * TILE, *o = w->o + (long)h * a->dv;
	acc_t max = w->max[h], sum = 0, fix;

#pragma omp simd reduction(max : max)
	for (int u = 0; u < nu; u++)
		max = s[u] > max ? s[u] : max;
#pragma omp simd reduction(+ : sum)
	for (int u = 0; u < nu; u++) {
		s[u] = r_exp(s[u] - max);
		sum += s[u];
	}
	fix = r_exp(w->max[h] - max);
	w->max[h] = max;
	w->sum[h] = w->sum[h] * fix + sum;
	for (int e = 0; fix != 1 && e < a->dv; e++)
		o[e] *= fix;
}

/* o[e] += sum of p[u] x[u][e] over @nu values in order, for @n elements */
static inline void output_add(acc_t *o, const acc_t *p, const act_t *x, long ld, int nu, int n)
{
	tile_vec sum;

	if (n < LANES) {
		for (int u = 0; u < nu; u++, x += ld)
			for (int e = 0; e < n; e++)
				o[e] += p[u] * load(x[e]);
		return;
	}
	memcpy(&sum, o, sizeof(sum));
	for (int u = 0; u < nu; u++, x += ld) {
		__builtin_prefetch(x + NEAR * ld);
		sum += p[u] * tile_load(x);
	}
	memcpy(o, &sum, sizeof(sum));
}

/*
 * Outputs of heads that share no value, as step_products_apart() reads keys; those of one
 * head are in registers while a few values are added.
 */
static void step_outputs_apart(struct step *w, const struct attn_step *a, const act_t *v, int nu)
{
	for (int u0 = 0; u0 < nu; u0 += NEAR, v += NEAR * a->v_row)
		for (int h = 0; h < a->heads; h++) {
			const acc_t *p = w->s + (long)h * TILE + u0;
			acc_t *o = w->o + (long)h * a->dv;
			const act_t *x = v + h * a->v_head;

			for (int e = 0; e < a->dv; e += LANES, x += LANES, o += LANES)
				output_add(o, p, x, a->v_row, MIN(NEAR, nu - u0), MIN(LANES, a->dv - e));
		}
}

/* One run of keys: its maxima, sums and outputs; scores go to route as they are. */
static void step_run(struct step *w, const struct attn_step *a, int i, int run)
{
	int end = MIN((run + 1) * RUN, a->pos[i] + 1), nu;
	int group = attn_sharers(a->heads, a->group, a->v_head);
	const act_t *v = a->v + i * a->cache_stride;
	acc_t *route;

	for (int h = 0; h < a->heads; h++) {
		w->max[h] = -INFINITY;
		w->sum[h] = 0;
	}
	for (long e = 0; e < (long)a->heads * a->dv; e++)
		w->o[e] = 0;
	for (int u0 = run * RUN; u0 < end; u0 += TILE) {
		nu = MIN(TILE, end - u0);
		step_scores(w, a, i, u0, nu);
		for (int h = 0; h < a->heads; h++) {
			if (a->route) {
				route = a->route + ((long)i * a->heads + h) * a->route_stride + u0;
				for (int u = 0; u < nu; u++)
					route[u] = w->s[(long)h * TILE + u];
			}
			step_softmax(w, a, h, nu);
		}
		if (group == 1)
			step_outputs_apart(w, a, v + u0 * a->v_row, nu);
		for (int h = 0; h < a->heads && group > 1; h += group) {
			tile_pack(w->v, v + u0 * a->v_row + h / a->group * a->v_head, a->v_row,
				  nu, a->dv);
			tile_mul(&(struct tile_mul) {
				.m = group, .n = a->dv, .k = nu,
				.b = w->v, .ldb = tile_width(a->dv),
				.a = w->s + (long)h * TILE, .a_row = TILE, .a_col = 1,
				.c = w->o + (long)h * a->dv, .ldc = a->dv, .add = true,
			});
		}
	}
}

/* Puts the runs of one head together. */
static void step_join(const struct attn_step *a, acc_t *scratch, int parts, int i, int h)
{
	int first = parts / a->b * i, last = first + a->pos[i] / RUN;
	acc_t max = -INFINITY, sum = 0, gamma, fix;
	long row = (long)i * a->heads + h;
	act_t *o = a->o + row * a->dv;
	acc_t *route, *sums;
	struct step w;

	gamma = a->gamma ? a->gamma[row] : 1;
	for (int part = first; part <= last; part++) {
		w = step_at(a, scratch, parts, part, 0);
		max = MAX(max, w.max[h]);
	}
	w = step_at(a, scratch, parts, first, 0);
	sums = w.o + (long)h * a->dv;	/* of all runs, in place of the first's */
	for (int part = first; part <= last; part++) {
		w = step_at(a, scratch, parts, part, 0);
		fix = r_exp(w.max[h] - max);
		sum += w.sum[h] * fix;
		for (int e = 0; e < a->dv; e++)
			sums[e] = (part > first ? sums[e] : 0) + w.o[(long)h * a->dv + e] * fix;
	}
	for (int e = 0; e < a->dv; e++)
		o[e] = store(sums[e] * (gamma / sum));
	if (!a->route)
		return;
	route = a->route + row * a->route_stride;
	for (int u = 0; u <= a->pos[i]; u++)
		route[u] = gamma / sum * r_exp(route[u] - max);
}

void k_attn_step(const struct attn_step *a)
{
	int runs = step_runs(a), parts = a->b * runs;
	acc_t *scratch = tile_scratch(parts * step_part(a) +
				      omp_get_max_threads() * step_work(a));
	struct step w;

#pragma omp parallel if (parts > 1) private(w)
	{
#pragma omp for schedule(dynamic)
		for (int part = 0; part < parts; part++) {
			if (part % runs * RUN > a->pos[part / runs])
				continue;
			w = step_at(a, scratch, parts, part, omp_get_thread_num());
			step_run(&w, a, part / runs, part % runs);
		}
#pragma omp for collapse(2)
		for (int i = 0; i < a->b; i++)
			for (int h = 0; h < a->heads; h++)
				step_join(a, scratch, parts, i, h);
	}
}
