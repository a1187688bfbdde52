/* SPDX-License-Identifier: MIT */
/**
 * DOC: the scalars of an update
 *
 * What one thread computes once an update, in double, the same on every arch: C of the
 * cpu's optim.c and, with EACH, of the GPU's kernels.
 */
#ifndef TENON_ARCH_OPTIM_SCALARS_H
#define TENON_ARCH_OPTIM_SCALARS_H

#include <math.h>

#include "kernels_optim.h"
#include "util.h"

#ifdef __CUDACC__
#define EACH static inline __device__
#else
#define EACH static inline
#endif

enum {
	NORMS_MIN = 10,		/* norms that a z-score needs */
	TREE_SLOTS = 32,	/* of a counter of int values */
};

#define WARM_FLOOR 1e-3		/* smallest factor of the warmup after a reset */
#define SPIKE_M 0.5		/* what a spike leaves of the first moments */
#define SPIKE_V 0.9		/* and of the second */

/** loss_tree() - mean of @n losses, summed in the tree of the accumulation */
EACH double loss_tree(const double *x, int n)
{
	double slot[TREE_SLOTS], sum = 0;
	unsigned int full = 0;	/* bit j: slot j holds a sum */

	for (int i = 0; i < n; i++) {
		double carry = x[i];
		int j = 0;

		for (; full & 1u << j; j++) {
			carry = slot[j] + carry;
			full &= ~(1u << j);
		}
		slot[j] = carry;
		full |= 1u << j;
	}
	for (int j = 0, some = 0; j < TREE_SLOTS; j++)
		if (full & 1u << j) {
			sum = some ? slot[j] + sum : slot[j];
			some = 1;
		}
	return sum / n;
}

/** clip_of() - where an element g is clipped: g^2 > clip v, in g's own scale; 0: nowhere */
EACH double clip_of(const struct adam_hyper *hp, const struct adam_state *st)
{
	if (!hp->theta || st->count < MAX(hp->clip_after, 1))
		return 0;
	return hp->theta / ((1 - pow(hp->beta2, (double)st->count)) * hp->inv_accum * hp->inv_accum);
}

/** guard() - may the update of a gradient with this sum of squares be made? */
EACH void guard(struct optim_state *st, double squares, double loss)
{
	st->norm = sqrt(squares);
	st->loss = loss;
	st->skip = !isfinite(st->norm) || !isfinite(loss);
	st->skipped += st->skip;
	st->skipped_row = st->skip ? st->skipped_row + 1 : 0;
	st->applied += !st->skip;
}

/* How many population deviations @norm is from the window's mean. */
EACH double z_score(const struct adam_state *st, double norm)
{
	double mean = 0, var = 0;

	if (st->nr_norms < NORMS_MIN)
		return 0;
	for (int i = 0; i < st->nr_norms; i++)
		mean += st->norms[i];
	mean /= st->nr_norms;
	for (int i = 0; i < st->nr_norms; i++)
		var += (st->norms[i] - mean) * (st->norms[i] - mean);
	var /= st->nr_norms;
	return var > 0 ? (norm - mean) / sqrt(var) : 0;
}

EACH void window_push(struct adam_state *st, double norm)
{
	st->norms[st->head] = norm;
	st->head = (st->head + 1) % ADAM_WINDOW;
	st->nr_norms = MIN(st->nr_norms + 1, (int64_t)ADAM_WINDOW);
}

/* Factor of the learning rate; counts the warmup on. */
EACH double warm_factor(struct adam_state *st, int warmup)
{
	double f = 1;

	if (st->warm) {
		f = fmax(WARM_FLOOR, 0.5 * (1 - cos(M_PI * st->warm / warmup)));
		st->warm = st->warm < warmup ? st->warm + 1 : 0;
	}
	return f;
}

/** decide() - z-score, spike, clip, bias corrections, learning rate and reset of the update */
EACH void decide(struct adam_state *st, double lr, const struct adam_hyper *hp)
{
	double norm = st->common.norm, clip = 1;

	if (st->common.skip) {
		st->z = 0;
		st->spike_now = 0;
		st->reset_now = 0;
		return;
	}
	st->clip = clip_of(hp, st);
	st->z = z_score(st, norm);
	st->spike_now = hp->spike > 0 && st->z > hp->spike;
	st->spikes += st->spike_now;
	window_push(st, norm);
	if (hp->grad_clip > 0 && norm > hp->grad_clip)
		clip = hp->grad_clip / norm;
	st->gscale = hp->inv_accum * clip;
	st->count++;
	st->corr1 = 1 - pow(hp->beta1, (double)st->count);
	st->corr2 = 1 - pow(hp->beta2, (double)st->count);
	st->lr = lr * warm_factor(st, hp->warmup);
	st->reset_now = hp->interval && st->common.applied % hp->interval == 0;
	if (st->reset_now) {
		st->resets++;
		st->count = 0;
		st->warm = hp->warmup > 0;
	}
}

/** struct adam - the scalars of one update, rounded once */
struct adam {
	grad_t clip, gscale, keep_m, keep_v, take_m, take_v, step, inv_corr2, epsilon;
	bool reset;
};

EACH struct adam adam_of(const struct adam_hyper *hp, const struct adam_state *st)
{
	struct adam a;

	a.clip = st->clip;
	a.gscale = st->gscale;
	a.keep_m = hp->beta1 * (st->spike_now ? SPIKE_M : 1);
	a.keep_v = hp->beta2 * (st->spike_now ? SPIKE_V : 1);
	a.take_m = 1 - hp->beta1;
	a.take_v = 1 - hp->beta2;
	a.step = st->lr / st->corr1;
	a.inv_corr2 = 1 / st->corr2;
	a.epsilon = hp->epsilon;
	a.reset = st->reset_now;
	return a;
}

#endif
