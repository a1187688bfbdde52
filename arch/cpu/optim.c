// SPDX-License-Identifier: MIT
/*
 * The optimizer's kernels: mean loss, global norm, decision, AdamW with SPAM's element
 * clip.
 *
 * Huang et al. 2025, arXiv 2501.06842 (SPAM), with a spike detector on the global
 * norm. Elements are independent except in the norm, whose partial sums have a
 * fixed size. Bias corrections and factors are computed in double and rounded once.
 */
#include <assert.h>
#include <float.h>
#include <string.h>

#include "kernels.h"
#include "math.h"
#include "util.h"
#include "../optim_scalars.h"

enum {
	BLOCK = 16384,		/* elements of one step of work */
	SPLIT_MIN = 32768,	/* below, threads cost more than they gain */
};

void k_loss_tree(double *dst, const double *x, int n)
{
	*dst = loss_tree(x, n);
}

/* ---- walking a span ---------------------------------------------------------- */

/*
 * The next piece of [*at, end) that lies in one trained tensor, from range *r on:
 * elements [*at, return value) of range *r. No piece is left where that is *at.
 */
static size_t next_piece(const struct optim_span *s, int *r, size_t *at, size_t end)
{
	for (; *r < s->nr && *at < end && s->ranges[*r].offset < end; (*r)++) {
		const struct optim_range *x = &s->ranges[*r];
		size_t from = MAX(*at, x->offset), to = MIN(end, x->offset + x->numel);

		if (x->frozen || from >= to)
			continue;
		*at = from;
		return to;
	}
	return *at;
}

/* ---- norm -------------------------------------------------------------------- */

/*
 * An infinite gradient is left as it is: it must show in the norm, so that the update is
 * skipped and not mended.
 */
static inline grad_t clipped(grad_t g, grad_t v, grad_t clip)
{
	const grad_t huge = sizeof(grad_t) == sizeof(double) ? DBL_MAX : FLT_MAX;
	grad_t most = clip * v, edge = r_sqrt(most);

	edge = g < 0 ? -edge : edge;
	return (g * g > most) & (v > 0) & (g <= huge) & (g >= -huge) ? edge : g;
}

static double sum_squares(const grad_t *g, size_t n)
{
	double sum = 0;

#pragma omp simd reduction(+ : sum)
	for (size_t i = 0; i < n; i++)
		sum += (double)g[i] * g[i];
	return sum;
}

static double sum_squares_clipped(const grad_t *g, const grad_t *v, size_t n, grad_t clip)
{
	double sum = 0;

#pragma omp simd reduction(+ : sum)
	for (size_t i = 0; i < n; i++) {
		double x = clipped(g[i], v[i], clip);

		sum += x * x;
	}
	return sum;
}

static int64_t first_bad(const grad_t *g, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!isfinite(g[i]))
			return i;
	return -1;
}

/* One chunk of the flat buffers. An overflow of the sum alone leaves *bad at -1. */
static double norm_chunk(int32_t *bad, const struct adam_buffers *x, const struct optim_span *s,
			 size_t from, grad_t clip)
{
	size_t at = from, end = MIN(from + OPTIM_CHUNK, s->offset + s->n), to;
	double sum = 0, piece;
	int r = 0;

	*bad = -1;
	for (; (to = next_piece(s, &r, &at, end)) > at; at = to) {
		const grad_t *g = x->g + (at - s->offset);
		int64_t first;

		piece = clip > 0 ? sum_squares_clipped(g, x->v + (at - s->offset), to - at, clip) :
				   sum_squares(g, to - at);
		sum += piece;
		if (isfinite(piece) || *bad >= 0)
			continue;
		first = first_bad(g, to - at);
		*bad = first < 0 ? -1 : (int32_t)(at - from + first);
	}
	return sum;
}

void k_adam_norm(double *partial, int32_t *bad, const struct adam_buffers *x,
		 const struct optim_span *s, const struct adam_hyper *hp,
		 const struct adam_state *st)
{
	double factor = hp->inv_accum * hp->inv_accum;
	grad_t clip = clip_of(hp, st);

	assert(s->offset % OPTIM_CHUNK == 0);
#pragma omp parallel for schedule(static) if (s->n >= SPLIT_MIN)
	for (size_t from = s->offset; from < s->offset + s->n; from += OPTIM_CHUNK) {
		size_t c = from / OPTIM_CHUNK;

		partial[c] = factor * norm_chunk(&bad[c], x, s, from, clip);
	}
}

/* ---- decision ---------------------------------------------------------------- */

void k_optim_guard(struct optim_state *st, const double *partial, size_t nr, const double *loss)
{
	double sum = 0;

	for (size_t i = 0; i < nr; i++)
		sum += partial[i];
	guard(st, sum, *loss);
}

void k_adam_decide(struct adam_state *st, const double *lr, const struct adam_hyper *hp)
{
	decide(st, *lr, hp);
}

/* ---- update ------------------------------------------------------------------ */

static inline void update(grad_t *w, const grad_t *g, grad_t *m, grad_t *v, size_t n,
			  const struct adam *s, grad_t decay, bool clip)
{
	const struct adam a = *s;

#pragma omp simd
	for (size_t i = 0; i < n; i++) {
		grad_t gi = (clip ? clipped(g[i], v[i], a.clip) : g[i]) * a.gscale;
		grad_t mi = a.keep_m * m[i] + a.take_m * gi;
		grad_t vi = a.keep_v * v[i] + a.take_v * gi * gi;

		w[i] -= a.step * mi / (r_sqrt(vi * a.inv_corr2) + a.epsilon) + decay * w[i];
		m[i] = mi;
		v[i] = vi;
	}
}

/* Elements [at, to), all of one tensor. */
static void update_piece(const struct adam_buffers *x, const struct optim_span *s,
			 const struct optim_range *range, size_t at, size_t to,
			 const struct adam *a, double lr)
{
	size_t i = at - s->offset, n = to - at;
	grad_t *own = range->wide ? (grad_t *)(x->w + range->offset) + (at - range->offset) :
				    (grad_t *)(x->w + at);
	grad_t *w = x->master ? x->master + i : own;

	if (a->clip > 0)
		update(w, x->g + i, x->m + i, x->v + i, n, a, lr * range->decay, true);
	else
		update(w, x->g + i, x->m + i, x->v + i, n, a, lr * range->decay, false);
	if (x->master && range->wide)
		memcpy(own, w, n * sizeof(*w));
	else if (x->master)
		for (size_t k = 0; k < n; k++)
			x->w[at + k] = store(w[k]);
	if (a->reset) {
		memset(x->m + i, 0, n * sizeof(*x->m));
		memset(x->v + i, 0, n * sizeof(*x->v));
	}
}

/* Those of a frozen range that has a rate; the weights are wide, and so their own masters. */
static void update_by_sign(const struct adam_buffers *x, const struct optim_span *s,
			   const struct optim_range *range)
{
	size_t from = MAX(s->offset, range->offset);
	size_t to = MIN(s->offset + s->n, range->offset + range->numel);
	grad_t *w = (grad_t *)(x->w + range->offset) - range->offset;

	for (size_t at = from; at < to; at++) {
		grad_t g = x->g[at - s->offset];

		w[at] -= range->rate * ((g > 0) - (g < 0));
		if (x->master)
			x->master[at - s->offset] = w[at];
	}
}

void k_adamw(const struct adam_buffers *x, const struct optim_span *s, const struct adam_hyper *hp,
	     const struct adam_state *st)
{
	const struct adam a = adam_of(hp, st);

	if (st->common.skip)
		return;
#pragma omp parallel for schedule(static) if (s->n >= SPLIT_MIN)
	for (size_t from = 0; from < s->n; from += BLOCK) {
		size_t at = s->offset + from, end = s->offset + MIN(from + BLOCK, s->n), to;

		for (int r = 0; (to = next_piece(s, &r, &at, end)) > at; at = to)
			update_piece(x, s, &s->ranges[r], at, to, &a, st->lr);
	}
	for (int r = 0; r < s->nr; r++)
		if (s->ranges[r].rate > 0)
			update_by_sign(x, s, &s->ranges[r]);
}
