// SPDX-License-Identifier: MIT
/* Operands of a recurrence for the host, and outputs from there. */
#include "linattn.h"

/* [t][width] of rows @row apart */
static void widen(double *dst, const act_t *src, long row, int t, int width)
{
	for (int r = 0; r < t; r++, src += row)
		for (int c = 0; c < width; c++)
			*dst++ = load(src[c]);
}

static void get_alpha(double *dst, const struct linattn *a, int i, int h)
{
	for (int r = 0; r < a->t; r++) {
		const acc_t *g = decay_at(a, (long)i * a->t + r, h);

		for (int c = 0; c < a->dk; c++)
			*dst++ = g ? exp((double)g[a->decay == LINATTN_VECTOR ? c : 0]) :
				     (double)decay_of_head(a, h);
	}
}

void k_linattn_get(const struct linattn *a, int i, int h, struct linattn_host *x)
{
	long row = (long)i * a->t;

	widen(x->q, a->q + row * a->q_row + linattn_head(a, LINATTN_Q, h) * a->q_head, a->q_row,
	      a->t, a->dk);
	widen(x->k, a->k + row * a->k_row + linattn_head(a, LINATTN_K, h) * a->k_head, a->k_row,
	      a->t, a->dk);
	widen(x->v, a->v + row * a->v_row + linattn_head(a, LINATTN_V, h) * a->v_head, a->v_row,
	      a->t, a->dv);
	get_alpha(x->alpha, a, i, h);
}

void k_linattn_put(const struct linattn *a, int i, int h, const double *o)
{
	acc_t *row = tile_scratch(a->dv);

	for (int r = 0; r < a->t; r++, o += a->dv) {
		for (int c = 0; c < a->dv; c++)
			row[c] = o[c];
		store_row(a->o + (((long)i * a->t + r) * a->heads + h) * a->dv, row, a->dv);
	}
}
