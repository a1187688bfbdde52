// SPDX-License-Identifier: MIT
/*
 * Attention backward. Tiles are recomputed from q, k and the saved log-sum-exp.
 * With dP = gamma d_o v and delta = <d_o, o>:
 *
 *     dv_u = sum_t gamma_t P_{t,u} d_o_t        ds_{t,u} = P_{t,u} (dP_{t,u} - delta_t)
 *     dq_t = scale sum_u ds_{t,u} k_u           dk_u = scale sum_t ds_{t,u} q_t
 *
 * and for the reciprocal term, in its band, dk_t += ra_scale sum_u ds_{t,u} q_u and
 * dq_u += ra_scale sum_t ds_{t,u} k_t. A tile (t, u) thus adds to rows of both
 * its blocks. Threads take the tiles diagonal by diagonal: on one diagonal
 * t - u = constant no two tiles share a block of t or of u, so every sum has one
 * fixed order and needs no atomics. Where activations are bf16 the sums are acc_t
 * ones, behind delta, and rounded once at the end; else dq, dk and dv hold them.
 */
#include <string.h>

#include "attn.h"
#include "math.h"

/* Sums of gradients, and where they stand: element (i, h, e) at [i * row + h * head + e]. */
struct sums {
	acc_t *x;
	long row, head;
};

struct grads {
	const struct attn *a;
	struct sums dq, dk, dv;
	const act_t *d_o;	/* strides of o */
	const acc_t *delta;	/* [b*t][heads] */
};

static acc_t *sums_q(const struct grads *g, int i, int pos, int h)
{
	return g->dq.x + ((long)i * g->a->t + pos) * g->dq.row + h * g->dq.head;
}

static acc_t *sums_k(const struct grads *g, int i, int pos, int h)
{
	return g->dk.x + ((long)i * g->a->t + pos) * g->dk.row + h / g->a->group * g->dk.head;
}

static acc_t *sums_v(const struct grads *g, int i, int pos, int h)
{
	return g->dv.x + ((long)i * g->a->t + pos) * g->dv.row + h / g->a->group * g->dv.head;
}

/* Scratch of a tile; k and v of all heads that share them. */
struct bwd {
	acc_t (*s)[TILE];	/* [TILE] scores, then gamma P */
	acc_t (*ds)[TILE];	/* [TILE] dP, then scale ds */
	acc_t (*e)[TILE];	/* [TILE] reciprocal term, then ra_scale ds in its band */
	acc_t *kt;		/* [dk][TILE] keys of u transposed, times scale */
	acc_t *qt;		/* [dk][TILE] queries of u transposed (reciprocal term) */
	acc_t *vt;		/* [dv][TILE] values of u transposed */
	acc_t *k;		/* [TILE][tile_width(dk)] keys of u, or of t */
	acc_t *q;		/* [TILE][tile_width(dk)] queries of t, or of u */
	acc_t *d_o;		/* [TILE][tile_width(dv)] */
	acc_t *left;		/* tile_left(TILE, MAX(dk, dv)) */
};

static void bwd_scratch(struct bwd *w, const struct attn *a)
{
	long kpanel = TILE * tile_width(a->dk), vpanel = TILE * tile_width(a->dv);
	acc_t *p = tile_scratch(3 * TILE * TILE + 4 * kpanel + 2 * vpanel +
				tile_left(TILE, MAX(a->dk, a->dv)));

	w->s = (void *)p;
	w->ds = w->s + TILE;
	w->e = w->ds + TILE;
	w->kt = p + 3 * TILE * TILE;
	w->qt = w->kt + kpanel;
	w->k = w->qt + kpanel;
	w->q = w->k + kpanel;
	w->vt = w->q + kpanel;
	w->d_o = w->vt + vpanel;
	w->left = w->d_o + vpanel;
}

/* s = gamma P, ds = scale P (dP - delta), e = ra_scale P (dP - delta) in the band */
static void bwd_softmax(struct bwd *w, const struct grads *g, int i, int h, int t0, int u0)
{
	const struct attn *a = g->a;
	int nt = attn_rows(a, t0), nu = attn_rows(a, u0), lo, hi, end = nu, whole;
	acc_t scale = a->scale, ra_scale = a->ra_scale, p, d;
	bool band = attn_in_band(a, t0, u0);
	acc_t lse, delta, gamma;
	long row;

	for (int t = 0; t < nt; t++) {
		row = attn_stat(a, i, t0 + t, h);
		lse = a->lse[row];
		delta = g->delta[row];
		gamma = a->gamma ? a->gamma[row] : 1;
		if (t0 == u0)
			end = t + 1;
		whole = tile_width(end);	/* no remainder: what follows end is dropped */
		for (int u = 0; u < whole; u++) {
			p = r_exp(w->s[t][u] - lse);
			d = p * (gamma * w->ds[t][u] - delta);
			w->s[t][u] = gamma * p;
			w->ds[t][u] = d;
		}
		if (end < TILE) {
			memset(&w->s[t][end], 0, (TILE - end) * sizeof(acc_t));
			memset(&w->ds[t][end], 0, (TILE - end) * sizeof(acc_t));
		}
		if (band) {
			attn_band_range(a, t0 + t, u0, nu, &lo, &hi);
			memset(w->e[t], 0, sizeof(w->e[t]));
			for (int u = lo; u < hi; u++)
				w->e[t][u] = ra_scale * w->ds[t][u];
		}
		for (int u = 0; u < whole; u++)
			w->ds[t][u] *= scale;
	}
}

/* The tile's part of dv_u, dk_u and dq_t. */
static void bwd_products(struct bwd *w, const struct grads *g, int i, int h, int t0, int u0)
{
	const struct attn *a = g->a;
	int nt = attn_rows(a, t0), nu = attn_rows(a, u0);
	bool diagonal = t0 == u0;

	tile_mul(&(struct tile_mul) {
		.m = nu, .n = a->dv, .k = nt, .b = w->d_o, .ldb = tile_width(a->dv),
		.a = w->s[0], .a_row = 1, .a_col = TILE,
		.c = sums_v(g, i, u0, h), .ldc = g->dv.row,
		.add = !diagonal || !attn_first_v(a, h),
		.shape = diagonal ? TILE_A_UPPER : TILE_FULL,
	});
	tile_mul(&(struct tile_mul) {
		.m = nu, .n = a->dk, .k = nt, .b = w->q, .ldb = tile_width(a->dk),
		.a = w->ds[0], .a_row = 1, .a_col = TILE,
		.c = sums_k(g, i, u0, h), .ldc = g->dk.row,
		.add = !diagonal || !attn_first_k(a, h),
		.shape = diagonal ? TILE_A_UPPER : TILE_FULL,
	});
	tile_mul(&(struct tile_mul) {
		.m = nt, .n = a->dk, .k = nu, .b = w->k, .ldb = tile_width(a->dk),
		.a = w->ds[0], .a_row = TILE, .a_col = 1,
		.c = sums_q(g, i, t0, h), .ldc = g->dq.row, .add = !diagonal,
		.shape = diagonal ? TILE_A_LOWER : TILE_FULL,
	});
}

/* Reciprocal term: the tile's part of dk_t and dq_u. */
static void bwd_band(struct bwd *w, const struct grads *g, int i, int h, int t0, int u0)
{
	const struct attn *a = g->a;
	int nt = attn_rows(a, t0), nu = attn_rows(a, u0);

	tile_pack(w->q, a->q + attn_q(a, i, u0, h), a->q_row, nu, a->dk);
	tile_mul(&(struct tile_mul) {
		.m = nt, .n = a->dk, .k = nu, .b = w->q, .ldb = tile_width(a->dk),
		.a = w->e[0], .a_row = TILE, .a_col = 1,
		.c = sums_k(g, i, t0, h), .ldc = g->dk.row, .add = true,
	});
	tile_pack(w->k, a->k + attn_k(a, i, t0, h), a->k_row, nt, a->dk);
	tile_mul(&(struct tile_mul) {
		.m = nu, .n = a->dk, .k = nt, .b = w->k, .ldb = tile_width(a->dk),
		.a = w->e[0], .a_row = 1, .a_col = TILE,
		.c = sums_q(g, i, u0, h), .ldc = g->dq.row, .add = true,
	});
}

/* One tile, heads [h0, h1) one after the other. */
static void bwd_tile(const struct grads *g, int i, int h0, int h1, int t0, int u0)
{
	const struct attn *a = g->a;
	int nt = attn_rows(a, t0), nu = attn_rows(a, u0);
	bool band = attn_in_band(a, t0, u0);
	const act_t *key, *d_o;
	struct bwd w;

	bwd_scratch(&w, a);
	for (int h = h0; h < h1; h++) {
		key = a->k + attn_k(a, i, u0, h);
		d_o = g->d_o + attn_o(a, i, t0, h);
		if (attn_first_k(a, h))
			tile_pack_t(w.kt, key, a->k_row, nu, a->dk, a->scale);
		if (attn_first_k(a, h) || band)
			tile_pack(w.k, key, a->k_row, nu, a->dk);
		if (attn_first_v(a, h))
			tile_pack_t(w.vt, a->v + attn_v(a, i, u0, h), a->v_row, nu, a->dv, 1);
		tile_pack(w.q, a->q + attn_q(a, i, t0, h), a->q_row, nt, a->dk);
		tile_pack(w.d_o, d_o, a->o_row, nt, a->dv);
		attn_scores(w.s, a, i, h, t0, u0, w.kt, w.qt, w.e, w.left);
		tile_mul_act(&(struct tile_mul) {
			.m = nt, .n = nu, .k = a->dv, .b = w.vt, .ldb = TILE,
			.c = w.ds[0], .ldc = TILE, .pad = true,
			.shape = t0 == u0 ? TILE_C_LOWER : TILE_FULL,
		}, d_o, a->o_row, w.left);
		bwd_softmax(&w, g, i, h, t0, u0);
		bwd_products(&w, g, i, h, t0, u0);
		if (band)
			bwd_band(&w, g, i, h, t0, u0);
	}
}

/* delta = <d_o, o>; dgamma = delta / gamma */
static void bwd_delta(const struct attn *a, acc_t *delta, acc_t *dgamma, const act_t *d_o)
{
	long row, at;

#pragma omp parallel for private(row, at)
	for (int r = 0; r < a->b * a->t; r++) {
		for (int h = 0; h < a->heads; h++) {
			row = (long)r * a->heads + h;
			at = (long)r * a->o_row + h * a->o_head;
			delta[row] = tile_dot(d_o + at, a->o + at, a->dv);
			if (a->gamma && dgamma)
				dgamma[row] = a->gamma[row] == 0 ? 0 : delta[row] / a->gamma[row];
		}
	}
}

/*
 * Tiles on the diagonal t - u = step blocks. The reciprocal term adds to both
 * blocks of a tile in the same arrays: then blocks of u in every second run of
 * step blocks go first (half 0), the others after them (half 1).
 */
static void bwd_diagonal(const struct grads *g, int step, int half)
{
	const struct attn *a = g->a;
	/* heads that add to the same dk or dv go one after the other */
	int together = attn_sharers(a->heads, a->group, MIN(a->k_head, a->v_head));
	int groups = a->heads / together, tiles = attn_blocks(a) - step;

#pragma omp for collapse(3) schedule(dynamic)
	for (int i = 0; i < a->b; i++) {
		for (int n = 0; n < groups; n++) {
			for (int block = 0; block < tiles; block++) {
				if (half >= 0 && block / step % 2 != half)
					continue;
				bwd_tile(g, i, n * together, (n + 1) * together,
					 (block + step) * TILE, block * TILE);
			}
		}
	}
}

/* Sums of [b*t] rows of @n heads, @width wide, for @to: there, or at *@at. */
static struct sums sums_place(act_t *to, long row, long head, int n, int width, acc_t **at,
			      const struct attn *a)
{
	struct sums s = { (acc_t *)to, row, head };

	if (NARROW) {
		s = (struct sums){ *at, (long)n * width, head ? width : 0 };
		*at += (long)a->b * a->t * s.row;
	}
	return s;
}

/* The sums of [b*t] rows of @n heads rounded to where they belong. */
static void sums_store(act_t *to, long row, long head, int n, int width, const struct sums *s,
		       const struct attn *a)
{
#pragma omp for schedule(static)
	for (int r = 0; r < a->b * a->t; r++)
		for (int h = 0; h < n; h++)
			store_row(to + r * row + h * head, s->x + r * s->row + h * s->head, width);
}

void k_attn_bwd(const struct attn *a, act_t *dq, act_t *dk, act_t *dv, acc_t *dgamma,
		const act_t *d_o, acc_t *delta)
{
	acc_t *at = delta + (size_t)a->b * a->t * a->heads;
	int nk = a->k_head ? a->heads / a->group : 1, nv = a->v_head ? a->heads / a->group : 1;
	struct grads g = { .a = a, .d_o = d_o, .delta = delta };

	g.dq = sums_place(dq, a->q_row, a->q_head, a->heads, a->dk, &at, a);
	g.dk = sums_place(dk, a->k_row, a->k_head, nk, a->dk, &at, a);
	g.dv = sums_place(dv, a->v_row, a->v_head, nv, a->dv, &at, a);
	bwd_delta(a, delta, dgamma, d_o);
#pragma omp parallel
	{
		for (int step = 0; step < attn_blocks(a); step++) {
			if (step && attn_in_band(a, step * TILE, 0)) {
				bwd_diagonal(&g, step, 0);
				bwd_diagonal(&g, step, 1);
			} else {
				bwd_diagonal(&g, step, -1);
			}
		}
		if (NARROW) {
			sums_store(dq, a->q_row, a->q_head, a->heads, a->dk, &g.dq, a);
			sums_store(dk, a->k_row, a->k_head, nk, a->dk, &g.dk, a);
			sums_store(dv, a->v_row, a->v_head, nv, a->dv, &g.dv, a);
		}
	}
}
