// SPDX-License-Identifier: MIT
/*
 * Short convolutions over positions, in strips of channels: a vector holds neighbouring
 * channels, a strip's taps stand transposed in acc_t.
 */
#include "kernels_conv.h"
#include "math.h"
#include "tile.h"

enum {
	STRIP = 16,		/* channels that one thread works on */
	SPLIT_MIN = 16384,	/* elements below which threads cost more than they gain */
	GROUP = 64,		/* rows summed in acc_t; the groups in double */
};

/* The taps of a strip; channels that are not there have 0. */
struct strip {
	int c0, n;
	acc_t w[CONV_TAPS_MAX][STRIP], bias[STRIP];
};

static struct strip strip_at(const struct conv *a, int c0)
{
	struct strip s = { .c0 = c0, .n = MIN(STRIP, a->c - c0) };

	for (int c = 0; c < s.n; c++) {
		for (int j = 0; j < a->taps; j++)
			s.w[j][c] = load(a->w[(long)(c0 + c) * a->taps + j]);
		s.bias[c] = a->bias ? load(a->bias[c0 + c]) : 0;
	}
	return s;
}

static inline void add_tap(acc_t *sum, const acc_t *w, const act_t *x, int n)
{
#pragma omp simd
	for (int c = 0; c < n; c++)
		sum[c] += w[c] * load(x[c]);
}

/* Before SiLU, at position @t of a sequence whose strip begins at @x. */
static inline void before_silu(acc_t *sum, const struct conv *a, const struct strip *s,
			       const act_t *x, int t)
{
	memcpy(sum, s->bias, sizeof(s->bias));
	for (int j = MAX(0, a->taps - 1 - t); j < a->taps; j++)
		add_tap(sum, s->w[j], x + (t - a->taps + 1 + j) * a->x_row, s->n);
}

static inline void store_silu(act_t *y, const acc_t *sum, int n)
{
#pragma omp simd
	for (int c = 0; c < n; c++)
		y[c] = store(r_silu(sum[c]));
}

void k_conv_fwd(const struct conv *a)
{
#pragma omp parallel for collapse(2) schedule(static) if ((long)a->b * a->t * a->c >= SPLIT_MIN)
	for (int i = 0; i < a->b; i++)
		for (int c0 = 0; c0 < a->c; c0 += STRIP) {
			const struct strip s = strip_at(a, c0);
			const act_t *x = a->x + (long)i * a->t * a->x_row + c0;
			act_t *y = a->y + (long)i * a->t * a->y_row + c0;
			acc_t sum[STRIP];

			for (int t = 0; t < a->t; t++) {
				before_silu(sum, a, &s, x, t);
				store_silu(y + t * a->y_row, sum, s.n);
			}
		}
}

/* ---- backward -------------------------------------------------------------------- */

/* Sums of one strip: of its taps, and at [taps] of its bias. */
struct strip_grad {
	acc_t part[CONV_TAPS_MAX + 1][STRIP];
	double total[CONV_TAPS_MAX + 1][STRIP];
};

static void flush(struct strip_grad *g, int taps)
{
	for (int j = 0; j <= taps; j++)
		for (int c = 0; c < STRIP; c++)
			g->total[j][c] += g->part[j][c];
	memset(g->part, 0, sizeof(g->part));
}

/* dpre [t][STRIP] of one sequence, and its part of the sums */
static void sequence_pre(acc_t *dpre, struct strip_grad *g, const struct conv *a,
			 const struct strip *s, const act_t *x, const act_t *dy)
{
	for (int t = 0; t < a->t; t++, dpre += STRIP, dy += a->y_row) {
		acc_t sum[STRIP];

		before_silu(sum, a, s, x, t);
#pragma omp simd
		for (int c = 0; c < s->n; c++)
			dpre[c] = load(dy[c]) * r_silu_grad(sum[c]);
		for (int j = MAX(0, a->taps - 1 - t); j < a->taps; j++)
			add_tap(g->part[j], dpre, x + (t - a->taps + 1 + j) * a->x_row, s->n);
#pragma omp simd
		for (int c = 0; c < s->n; c++)
			g->part[a->taps][c] += dpre[c];
		if (t % GROUP == GROUP - 1 || t == a->t - 1)
			flush(g, a->taps);
	}
}

/* dx_t = sum over j of w_j dpre_(t + taps - 1 - j) */
static void sequence_dx(act_t *dx, const acc_t *dpre, const struct conv *a, const struct strip *s)
{
	for (int t = 0; t < a->t; t++, dx += a->x_row) {
		acc_t sum[STRIP] = { 0 };

		for (int j = a->taps - 1; j >= 0 && t + a->taps - 1 - j < a->t; j--) {
			const acc_t *d = dpre + (long)(t + a->taps - 1 - j) * STRIP;

#pragma omp simd
			for (int c = 0; c < STRIP; c++)
				sum[c] += s->w[j][c] * d[c];
		}
		store_row(dx, sum, s->n);
	}
}

static void strip_bwd(const struct conv *a, act_t *dx, grad_t *dw, grad_t *db, const act_t *dy,
		      int c0)
{
	const struct strip s = strip_at(a, c0);
	struct strip_grad g = { 0 };
	size_t size = (size_t)a->t * STRIP;
	acc_t *dpre = tile_scratch(size);

	memset(dpre, 0, size * sizeof(*dpre));	/* channels that are not there */
	for (int i = 0; i < a->b; i++) {
		long in = (long)i * a->t * a->x_row + c0, out = (long)i * a->t * a->y_row + c0;

		sequence_pre(dpre, &g, a, &s, a->x + in, dy + out);
		sequence_dx(dx + in, dpre, a, &s);
	}
	for (int c = 0; c < s.n; c++) {
		for (int j = 0; j < a->taps; j++)
			dw[(long)(c0 + c) * a->taps + j] = g.total[j][c];
		if (db)
			db[c0 + c] = g.total[a->taps][c];
	}
}

void k_conv_bwd(const struct conv *a, act_t *dx, grad_t *dw, grad_t *db, const act_t *dy)
{
#pragma omp parallel for schedule(static) if ((long)a->b * a->t * a->c >= SPLIT_MIN)
	for (int c0 = 0; c0 < a->c; c0 += STRIP)
		strip_bwd(a, dx, dw, db, dy, c0);
}

/* ---- decode ---------------------------------------------------------------------- */

void k_conv_step(const struct conv *a, const struct cache_rows *past, const int32_t *pos)
{
#pragma omp parallel for schedule(static) if ((long)a->b * a->c >= SPLIT_MIN)
	for (int c0 = 0; c0 < a->c; c0 += STRIP) {
		const struct strip s = strip_at(a, c0);

		for (int i = 0; i < a->b; i++) {
			const act_t *ring = past->base + i * past->seq + c0;
			acc_t sum[STRIP];

			memcpy(sum, s.bias, sizeof(sum));
			for (int j = MAX(0, a->taps - 1 - pos[i]); j < a->taps - 1; j++)
				add_tap(sum, s.w[j],
					ring + (pos[i] - a->taps + 1 + j) % past->slots * past->row,
					s.n);
			add_tap(sum, s.w[a->taps - 1], a->x + i * a->x_row + c0, s.n);
			store_silu(a->y + i * a->y_row + c0, sum, s.n);
		}
	}
	k_cache_put(past, a->x, a->x_row, pos, a->b);
}
