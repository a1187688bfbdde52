// SPDX-License-Identifier: MIT
/*
 * Selection of routing rows: attention rows are recomputed tile by tile from q, k
 * and the log-sum-exp, heads are summed inside a tile. topk keeps a running list
 * per row; none and rms go over a row's tiles once per sum that they need.
 */
#include <math.h>
#include <string.h>

#include "math.h"
#include "route.h"

void route_tile_open(struct route_tile *w, const struct route *r, size_t rest)
{
	acc_t *p = tile_scratch(3 * TILE * TILE + 2L * r->a.dk * TILE +
				tile_left(TILE, r->a.dk) + rest);

	w->p = (void *)p;
	w->s = w->p + TILE;
	w->e = w->s + TILE;
	w->kt = p + 3 * TILE * TILE;
	w->qt = w->kt + (long)r->a.dk * TILE;
	w->left = w->qt + (long)r->a.dk * TILE;
	w->rest = w->left + tile_left(TILE, r->a.dk);
}

/* p += share gamma exp(s - lse), or = for the first head; behind a row's end anything. */
static void tile_head(struct route_tile *w, const struct attn *a, int i, int h, int t0, int u0,
		      acc_t share, bool first)
{
	int nt = attn_rows(a, t0), end = attn_rows(a, u0), whole;
	acc_t lse, gamma, x;
	long row;

	for (int t = 0; t < nt; t++) {
		row = attn_stat(a, i, t0 + t, h);
		lse = a->lse[row];
		gamma = a->gamma ? share * a->gamma[row] : share;
		whole = tile_width(t0 == u0 ? t + 1 : end);
		for (int u = 0; u < whole; u++) {
			x = gamma * r_exp(w->s[t][u] - lse);
			w->p[t][u] = first ? x : w->p[t][u] + x;
		}
	}
}

void route_tile_fill(struct route_tile *w, const struct route *r, int i, int set, int t0, int u0)
{
	const struct attn *a = &r->a;
	int h0 = r->nr == 1 ? 0 : set, h1 = r->nr == 1 ? a->heads : set + 1;
	int nt = attn_rows(a, t0), end = attn_rows(a, u0);
	acc_t share = (acc_t)1 / (h1 - h0);

	for (int h = h0; h < h1; h++) {
		if (h == h0 || attn_first_k(a, h))
			tile_pack_t(w->kt, a->k + attn_k(a, i, u0, h), a->k_row, end, a->dk,
				    a->scale);
		attn_scores(w->s, a, i, h, t0, u0, w->kt, w->qt, w->e, w->left);
		tile_head(w, a, i, h, t0, u0, share, h == h0);
	}
	for (int t = 0; t < nt && (t0 == u0 || end < TILE); t++) {
		if (t0 == u0)
			end = t + 1;
		memset(&w->p[t][end], 0, (TILE - end) * sizeof(acc_t));
	}
}

void route_sort(acc_t *weight, int32_t *index, int n)
{
	acc_t x;
	int32_t u;
	int at;

	for (int j = 1; j < n; j++) {
		x = weight[j];
		u = index[j];
		for (at = j; at && index[at - 1] > u; at--) {
			weight[at] = weight[at - 1];
			index[at] = index[at - 1];
		}
		weight[at] = x;
		index[at] = u;
	}
}

/* Running lists of the largest, [topk][TILE]: a column per row of R, descending. */
struct lists {
	int topk;
	acc_t (*weight)[TILE];	/* row -1: infinity */
	acc_t (*index)[TILE];	/* positions as acc_t, so that lanes match; -1: none */
};

/*
 * Offer entry u to the lists of TILE rows. What is larger than the new entry keeps its
 * place, the new one stands behind its equals, the rest moves down. Above the first
 * place stands infinity.
 */
static void lists_offer(const struct lists *l, const acc_t *x, int u)
{
	const tile_vec pos = (acc_t)u - (tile_vec){};
	tile_vec *w, *at, new;
	tile_mask down, here;

	for (int row = 0; row < TILE; row += LANES) {
		new = *(const tile_vec *)(x + row);
		for (int j = l->topk - 1; j >= 0; j--) {
			w = (tile_vec *)(l->weight[j] + row);
			at = (tile_vec *)(l->index[j] + row);
			down = new > w[-TILE / LANES];
			here = new > *w;
			*at = tile_select(down, at[-TILE / LANES], tile_select(here, pos, *at));
			*w = tile_select(down, w[-TILE / LANES], tile_select(here, new, *w));
		}
	}
}

/* All entries of a tile, x[u][t]; most of them concern no list any more. */
static void lists_tile(const struct lists *l, acc_t (*x)[TILE], int nu, int u0)
{
	const acc_t *least = l->weight[l->topk - 1];
	int any;

	for (int u = 0; u < nu; u++) {
		any = 0;
		for (int t = 0; t < TILE; t++)
			any |= x[u][t] > least[t];
		if (any)
			lists_offer(l, x[u], u0 + u);
	}
}

/* A finished list of one row: ordered by u, normalised, the rest marked. */
static void lists_finish(const struct lists *l, const struct route *r, int t, long row)
{
	acc_t *weight = r->weight + row * r->topk, factor;
	int32_t *index = r->index + row * r->topk;
	double sum = 0;
	int n = 0;

	for (; n < r->topk && l->index[n][t] >= 0; n++) {
		weight[n] = l->weight[n][t];
		index[n] = (int32_t)l->index[n][t];
	}
	route_sort(weight, index, n);
	for (int j = 0; j < n; j++)
		sum += weight[j];
	factor = route_factor(r->normalize, sum);
	for (int j = 0; j < n; j++)
		weight[j] *= factor;
	for (int j = n; j < r->topk; j++) {
		weight[j] = 0;
		index[j] = -1;
	}
}

static void build_topk(const struct route *r, int i, int set, int t0)
{
	int nt = attn_rows(&r->a, t0), nu;
	struct route_tile w;
	struct lists l = { .topk = r->topk };
	acc_t (*x)[TILE];

	route_tile_open(&w, r, TILE * (TILE + 2 * ((size_t)r->topk + 1)));
	x = (void *)w.rest;
	l.weight = x + TILE + 1;
	l.index = l.weight + r->topk + 1;
	for (int j = -1; j < r->topk; j++) {
		for (int t = 0; t < TILE; t++) {
			l.weight[j][t] = j < 0 ? INFINITY : -1;	/* -1: below any entry */
			l.index[j][t] = -1;
		}
	}
	for (int u0 = 0; u0 <= t0; u0 += TILE) {
		nu = attn_rows(&r->a, u0);
		route_tile_fill(&w, r, i, set, t0, u0);
		for (int t = 0; t0 == u0 && t < nt; t++)
			for (int u = t + 1; u < nu; u++)
				w.p[t][u] = -1;
		tile_pack_t_acc(x[0], w.p[0], TILE, nt, nu);
		lists_tile(&l, x, nu, u0);
	}
	for (int t = 0; t < nt; t++)
		lists_finish(&l, r, t, route_row(r, i, set, t0 + t));
}

/* Sums of each row's entries from its threshold on: their squares, or themselves. */
static void row_sums(struct route_tile *w, const struct route *r, int i, int set, int t0,
		     bool square, double *sum)
{
	int nt = attn_rows(&r->a, t0);
	acc_t part, thr, x;

	memset(sum, 0, TILE * sizeof(*sum));
	for (int u0 = 0; u0 <= t0; u0 += TILE) {
		route_tile_fill(w, r, i, set, t0, u0);
		for (int t = 0; t < nt; t++) {
			thr = r->thr[route_row(r, i, set, t0 + t)];
			part = 0;
#pragma omp simd reduction(+ : part)
			for (int u = 0; u < TILE; u++) {
				x = w->p[t][u] >= thr ? w->p[t][u] : 0;
				part += square ? x * x : x;
			}
			sum[t] += part;
		}
	}
}

static void build_threshold(const struct route *r, int i, int set, int t0)
{
	int nt = attn_rows(&r->a, t0);
	struct route_tile w;
	double sum[TILE];
	long row;

	route_tile_open(&w, r, 0);
	for (int t = 0; t < nt; t++) {
		row = route_row(r, i, set, t0 + t);
		r->thr[row] = 0;
		r->inv[row] = 1;
	}
	if (r->mode == ROUTE_RMS) {
		row_sums(&w, r, i, set, t0, true, sum);
		for (int t = 0; t < nt; t++)
			r->thr[route_row(r, i, set, t0 + t)] = r->tau * sqrt(sum[t] / (t0 + t + 1));
	}
	if (!r->normalize)
		return;
	row_sums(&w, r, i, set, t0, false, sum);
	for (int t = 0; t < nt; t++)
		r->inv[route_row(r, i, set, t0 + t)] = route_factor(r->normalize, sum[t]);
}

void k_route_build(const struct route *r, void *scratch)
{
	int blocks = attn_blocks(&r->a), t0;

	(void)scratch;
#pragma omp parallel for collapse(3) schedule(dynamic) private(t0)
	for (int back = 0; back < blocks; back++) {
		for (int i = 0; i < r->a.b; i++) {
			for (int set = 0; set < r->nr; set++) {
				t0 = (blocks - 1 - back) * TILE;
				if (r->mode == ROUTE_TOPK)
					build_topk(r, i, set, t0);
				else
					build_threshold(r, i, set, t0);
			}
		}
	}
}
