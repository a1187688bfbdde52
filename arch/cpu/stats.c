// SPDX-License-Identifier: MIT
/*
 * Statistics for the log: of a tensor's elements, and the entropy of attention
 * rows, whose scores are recomputed tile by tile.
 */
#include <math.h>

#include "attn.h"
#include "kernels_stats.h"
#include "math.h"

static void stats_add(struct stats *s, acc_t x)
{
	s->mean += x;
	s->rms += (double)x * x;
	s->min = x < s->min ? x : s->min;
	s->max = x > s->max ? x : s->max;
}

static void stats_end(struct stats *s, size_t n)
{
	s->mean /= n;
	s->rms = sqrt(s->rms / n);
}

/* One thread, so one order; it runs at log steps only. */
void k_stats(struct stats *dst, const act_t *x, size_t n)
{
	struct stats s = { .min = load(x[0]), .max = load(x[0]) };

	for (size_t i = 0; i < n; i++)
		stats_add(&s, load(x[i]));
	stats_end(&s, n);
	*dst = s;
}

void k_stats_acc(struct stats *dst, const acc_t *x, size_t n)
{
	struct stats s = { .min = x[0], .max = x[0] };

	for (size_t i = 0; i < n; i++)
		stats_add(&s, x[i]);
	stats_end(&s, n);
	*dst = s;
}

/*
 * log P = s - lse, so the entropy of a row is lse - sum_u P_u s_u; summed as
 * -sum_u P_u (s_u - lse), where the terms do not cancel.
 */
static void entropy_block(const struct attn *a, acc_t *entropy, int i, int h, int t0)
{
	acc_t *kt = tile_scratch(2L * a->dk * TILE + 2 * TILE * TILE + tile_left(TILE, a->dk));
	acc_t *qt = kt + (long)a->dk * TILE;
	acc_t (*s)[TILE] = (void *)(qt + (long)a->dk * TILE), (*e)[TILE] = s + TILE;
	acc_t *left = e[TILE];
	int nt = attn_rows(a, t0);
	double sum[TILE] = { 0 };

	for (int u0 = 0; u0 <= t0; u0 += TILE) {
		tile_pack_t(kt, a->k + attn_k(a, i, u0, h), a->k_row, attn_rows(a, u0), a->dk,
			    a->scale);
		attn_scores(s, a, i, h, t0, u0, kt, qt, e, left);
		for (int t = 0; t < nt; t++) {
			acc_t lse = a->lse[attn_stat(a, i, t0 + t, h)];
			int end = t0 == u0 ? t + 1 : TILE;

			for (int u = 0; u < end; u++)
				sum[t] -= r_exp(s[t][u] - lse) * (s[t][u] - lse);
		}
	}
	for (int t = 0; t < nt; t++)
		entropy[attn_stat(a, i, t0 + t, h)] = sum[t];
}

void k_attn_entropy(const struct attn *a, acc_t *entropy)
{
#pragma omp parallel for collapse(3) schedule(dynamic)
	for (int n = 0; n < attn_blocks(a); n++)
		for (int i = 0; i < a->b; i++)
			for (int h = 0; h < a->heads; h++)
				entropy_block(a, entropy, i, h, n * TILE);
}
