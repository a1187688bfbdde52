// SPDX-License-Identifier: MIT
/*
 * Attention forward: a block of queries runs over its blocks of keys with an
 * online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao et al. 2022,
 * arXiv 2205.14135). Score tiles stand transposed, keys by queries, so that
 * maximum, sum and exponential run over vectors of queries; the output is summed
 * up beside them and written once.
 */
#include <string.h>

#include "attn.h"
#include "math.h"

/* Scratch of a block of queries. */
struct fwd {
	acc_t (*s)[TILE];	/* [TILE] scores of keys by queries, then their exponentials */
	acc_t (*e)[TILE];	/* [TILE] reciprocal term */
	acc_t *qt;		/* [dk][TILE] queries transposed, times scale */
	acc_t *kt;		/* [dk][TILE] the queries' own keys, times ra_scale */
	acc_t *v;		/* [TILE][tile_width(dv)] values */
	acc_t *o;		/* [TILE][tile_width(dv)] sums of outputs */
	acc_t *left;		/* tile_left(TILE, dk) */
	acc_t max[TILE];	/* running maximum of each query */
	acc_t sum[TILE];	/* running sum of exponentials */
	acc_t fix[TILE];	/* factor of older sums after a new maximum */
};

static void fwd_scratch(struct fwd *f, const struct attn *a)
{
	acc_t *p = tile_scratch(2 * TILE * TILE + 2L * a->dk * TILE +
				2 * TILE * tile_width(a->dv) + tile_left(TILE, a->dk));

	f->s = (void *)p;
	f->e = f->s + TILE;
	f->qt = p + 2 * TILE * TILE;
	f->kt = f->qt + (long)a->dk * TILE;
	f->v = f->kt + (long)a->dk * TILE;
	f->o = f->v + TILE * tile_width(a->dv);
	f->left = f->o + TILE * tile_width(a->dv);
}

/* s[u][t] += ra_scale <q_u, k_t> in the band */
static void fwd_band(struct fwd *f, const struct attn *a, int i, int h, int t0, int u0)
{
	int nt = attn_rows(a, t0), nu = attn_rows(a, u0), lo, hi;

	tile_mul_act(&(struct tile_mul) {
		.m = nu, .n = nt, .k = a->dk, .b = f->kt, .ldb = TILE,
		.c = f->e[0], .ldc = TILE, .pad = true,
	}, a->q + attn_q(a, i, u0, h), a->q_row, f->left);
	for (int u = 0; u < nu; u++) {
		lo = MAX(0, u0 + u - t0);
		hi = MIN((long)nt, (long)u0 + u - t0 + a->ra_window + 1);
		for (int t = lo; t < hi; t++)
			f->s[u][t] += f->e[u][t];
	}
}

/* Scores to exponentials below the new maximum; keys after a query get 0. */
static void fwd_softmax(struct fwd *f, int nu, int width, bool diagonal)
{
	acc_t max[TILE], sum[TILE] = {0}, p;
	int from;

	memcpy(max, f->max, sizeof(max));
	for (int u = 0; u < nu; u++) {
		for (int t = 0; diagonal && t < u; t++)
			f->s[u][t] = -INFINITY;
		for (int t = 0; t < width; t++)
			max[t] = f->s[u][t] > max[t] ? f->s[u][t] : max[t];
	}
	for (int u = 0; u < nu; u++) {
		from = diagonal ? u / LANES * LANES : 0;
		if (from)
			memset(f->s[u], 0, from * sizeof(acc_t));
		for (int t = from; t < width; t++) {
			p = r_exp(f->s[u][t] - max[t]);
			f->s[u][t] = p;
			sum[t] += p;
		}
	}
	for (int t = 0; t < width; t++) {
		f->fix[t] = r_exp(f->max[t] - max[t]);
		f->sum[t] = f->sum[t] * f->fix[t] + sum[t];
		f->max[t] = max[t];
	}
}

/* One tile of keys: scores, softmax, o = o * fix + P v. */
static void fwd_tile(struct fwd *f, const struct attn *a, int i, int h, int t0, int u0)
{
	int nt = attn_rows(a, t0), nu = attn_rows(a, u0);
	long width = tile_width(a->dv);

	tile_mul_act(&(struct tile_mul) {
		.m = nu, .n = nt, .k = a->dk, .b = f->qt, .ldb = TILE,
		.c = f->s[0], .ldc = TILE, .pad = true,
		.shape = t0 == u0 ? TILE_C_UPPER : TILE_FULL,
	}, a->k + attn_k(a, i, u0, h), a->k_row, f->left);
	if (attn_in_band(a, t0, u0))
		fwd_band(f, a, i, h, t0, u0);
	fwd_softmax(f, nu, tile_width(nt), t0 == u0);
	for (int t = 0; u0 && t < nt; t++)
		for (int e = 0; f->fix[t] != 1 && e < a->dv; e++)
			f->o[t * width + e] *= f->fix[t];
	tile_pack(f->v, a->v + attn_v(a, i, u0, h), a->v_row, nu, a->dv);
	tile_mul(&(struct tile_mul) {
		.m = nt, .n = a->dv, .k = nu, .b = f->v, .ldb = width,
		.a = f->s[0], .a_row = 1, .a_col = TILE,
		.c = f->o, .ldc = width, .add = u0, .pad = true,
		.shape = t0 == u0 ? TILE_A_LOWER : TILE_FULL,
	});
}

/* One block of queries of one head. */
static void fwd_block(const struct attn *a, int i, int h, int t0)
{
	int nt = attn_rows(a, t0);
	struct fwd f;
	acc_t factor, *sum;
	act_t *o;
	long row;

	fwd_scratch(&f, a);
	tile_pack_t(f.qt, a->q + attn_q(a, i, t0, h), a->q_row, nt, a->dk, a->scale);
	if (a->ra_scale != 0)
		tile_pack_t(f.kt, a->k + attn_k(a, i, t0, h), a->k_row, nt, a->dk, a->ra_scale);
	for (int t = 0; t < TILE; t++) {
		f.max[t] = -INFINITY;
		f.sum[t] = 0;
	}
	for (int u0 = 0; u0 <= t0; u0 += TILE)
		fwd_tile(&f, a, i, h, t0, u0);
	for (int t = 0; t < nt; t++) {
		row = attn_stat(a, i, t0 + t, h);
		o = a->o + attn_o(a, i, t0 + t, h);
		sum = f.o + t * tile_width(a->dv);
		factor = (a->gamma ? a->gamma[row] : 1) / f.sum[t];
		for (int e = 0; e < a->dv; e++)
			o[e] = store(sum[e] * factor);
		a->lse[row] = f.max[t] + r_log(f.sum[t]);
	}
}

void k_attn_fwd(const struct attn *a)
{
	int blocks = attn_blocks(a);

	/* the last block of a sequence has the most keys: it starts first */
#pragma omp parallel for collapse(3) schedule(dynamic)
	for (int back = 0; back < blocks; back++)
		for (int i = 0; i < a->b; i++)
			for (int h = 0; h < a->heads; h++)
				fwd_block(a, i, h, (blocks - 1 - back) * TILE);
}

void attn_scores(acc_t (*s)[TILE], const struct attn *a, int i, int h, int t0, int u0,
		 const acc_t *kt, acc_t *qt, acc_t (*e)[TILE], acc_t *left)
{
	enum tile_shape shape = t0 == u0 ? TILE_C_LOWER : TILE_FULL;
	int nt = attn_rows(a, t0), nu = attn_rows(a, u0), lo, hi;

	tile_mul_act(&(struct tile_mul) {
		.m = nt, .n = nu, .k = a->dk, .b = kt, .ldb = TILE,
		.c = s[0], .ldc = TILE, .pad = true, .shape = shape,
	}, a->q + attn_q(a, i, t0, h), a->q_row, left);
	if (!attn_in_band(a, t0, u0))
		return;
	tile_pack_t(qt, a->q + attn_q(a, i, u0, h), a->q_row, nu, a->dk, a->ra_scale);
	tile_mul_act(&(struct tile_mul) {
		.m = nt, .n = nu, .k = a->dk, .b = qt, .ldb = TILE,
		.c = e[0], .ldc = TILE, .pad = true, .shape = shape,
	}, a->k + attn_k(a, i, t0, h), a->k_row, left);
	for (int t = 0; t < nt; t++) {
		attn_band_range(a, t0 + t, u0, nu, &lo, &hi);
		for (int u = lo; u < hi; u++)
			s[t][u] += e[t][u];
	}
}
