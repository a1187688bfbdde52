// SPDX-License-Identifier: MIT
/*
 * The optimizer's kernels: element clip, global norm, decision, AdamW.
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

enum {
	BLOCK = 16384,		/* elements of one step of work */
	SPLIT_MIN = 32768,	/* below, threads cost more than they gain */
	NORMS_MIN = 10,		/* norms that a z-score needs */
};

#define WARM_FLOOR 1e-3		/* smallest factor of the warmup after a reset */
#define SPIKE_M 0.5		/* what a spike leaves of the first moments */
#define SPIKE_V 0.9		/* and of the second */

/*
 * (g inv_accum)^2 > theta v^ is g^2 > limit v. An infinite gradient is left as it
 * is: it must show in the norm, so that the update is skipped and not mended.
 */
void k_spam_clip(grad_t *g, const grad_t *v, size_t n, const struct optim_hyper *hp,
		 const struct optim_state *st)
{
	double corr2 = 1 - pow(hp->beta2, st->count);
	grad_t limit = hp->theta / (corr2 * hp->inv_accum * hp->inv_accum);
	const grad_t huge = sizeof(grad_t) == sizeof(double) ? DBL_MAX : FLT_MAX;

	if (!hp->theta || st->count < MAX(hp->clip_after, 1))
		return;
#pragma omp parallel for schedule(static) if (n >= SPLIT_MIN)
	for (size_t i = 0; i < n; i += BLOCK)
#pragma omp simd
		for (size_t j = i; j < MIN(i + BLOCK, n); j++) {
			grad_t x = g[j], most = limit * v[j];
			grad_t clipped = r_sqrt(most);

			clipped = x < 0 ? -clipped : clipped;
			g[j] = (x * x > most) & (v[j] > 0) & (x <= huge) & (x >= -huge) ?
				clipped : x;
		}
}

static double sum_squares(const grad_t *g, size_t n)
{
	double sum = 0;

#pragma omp simd reduction(+ : sum)
	for (size_t i = 0; i < n; i++)
		sum += (double)g[i] * g[i];
	return sum;
}

void k_grad_norm(double *partial, const grad_t *g, size_t n, const struct optim_hyper *hp)
{
	double factor = hp->inv_accum * hp->inv_accum;

#pragma omp parallel for schedule(static) if (n >= SPLIT_MIN)
	for (size_t i = 0; i < n; i += OPTIM_CHUNK)
		partial[i / OPTIM_CHUNK] =
			factor * sum_squares(g + i, MIN((size_t)OPTIM_CHUNK, n - i));
}

/* How many population deviations @norm is from the window's mean. */
static double z_score(const struct optim_state *st, double norm)
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

static void window_push(struct optim_state *st, double norm)
{
	st->norms[st->head] = norm;
	st->head = (st->head + 1) % OPTIM_WINDOW;
	st->nr_norms = MIN(st->nr_norms + 1, OPTIM_WINDOW);
}

/* Factor of the learning rate; counts the warmup on. */
static double warm_factor(struct optim_state *st, int warmup)
{
	double f = 1;

	if (st->warm) {
		f = fmax(WARM_FLOOR, 0.5 * (1 - cos(M_PI * st->warm / warmup)));
		st->warm = st->warm < warmup ? st->warm + 1 : 0;
	}
	return f;
}

static void skip(struct optim_state *st)
{
	st->skip = 1;
	st->skipped++;
	st->skipped_row++;
	st->z = 0;
	st->spike_now = 0;
	st->reset_now = 0;
}

void k_optim_decide(struct optim_state *st, const double *partial, size_t nr, const double *loss,
		    const double *lr, const struct optim_hyper *hp)
{
	double sum = 0, clip = 1;

	for (size_t i = 0; i < nr; i++)
		sum += partial[i];
	st->norm = sqrt(sum);
	st->loss = *loss;
	if (!isfinite(st->norm) || !isfinite(*loss)) {
		skip(st);
		return;
	}
	st->skip = 0;
	st->skipped_row = 0;
	st->z = z_score(st, st->norm);
	st->spike_now = hp->spike > 0 && st->z > hp->spike;
	st->spikes += st->spike_now;
	window_push(st, st->norm);
	if (hp->grad_clip > 0 && st->norm > hp->grad_clip)
		clip = hp->grad_clip / st->norm;
	st->gscale = hp->inv_accum * clip;
	st->applied++;
	st->count++;
	st->corr1 = 1 - pow(hp->beta1, st->count);
	st->corr2 = 1 - pow(hp->beta2, st->count);
	st->lr = *lr * warm_factor(st, hp->warmup);
	st->reset_now = hp->interval && st->applied % hp->interval == 0;
	if (st->reset_now) {
		st->resets++;
		st->count = 0;
		st->warm = hp->warmup > 0;
	}
}

/* The scalars of one update, rounded once. */
struct adam {
	grad_t gscale, keep_m, keep_v, take_m, take_v, step, inv_corr2, epsilon;
	bool reset;
};

static struct adam adam_of(const struct optim_hyper *hp, const struct optim_state *st)
{
	return (struct adam) {
		.gscale = st->gscale,
		.keep_m = hp->beta1 * (st->spike_now ? SPIKE_M : 1),
		.keep_v = hp->beta2 * (st->spike_now ? SPIKE_V : 1),
		.take_m = 1 - hp->beta1,
		.take_v = 1 - hp->beta2,
		.step = st->lr / st->corr1,
		.inv_corr2 = 1 / st->corr2,
		.epsilon = hp->epsilon,
		.reset = st->reset_now,
	};
}

static void update(grad_t *w, const grad_t *g, grad_t *m, grad_t *v, size_t n,
		   const struct adam *s, grad_t decay)
{
	const struct adam a = *s;

#pragma omp simd
	for (size_t i = 0; i < n; i++) {
		grad_t gi = g[i] * a.gscale;
		grad_t mi = a.keep_m * m[i] + a.take_m * gi;
		grad_t vi = a.keep_v * v[i] + a.take_v * gi * gi;

		w[i] -= a.step * mi / (r_sqrt(vi * a.inv_corr2) + a.epsilon) + decay * w[i];
		m[i] = mi;
		v[i] = vi;
	}
	if (a.reset) {
		memset(m, 0, n * sizeof(*m));
		memset(v, 0, n * sizeof(*v));
	}
}

/* Elements [from, from + BLOCK) of the ranges laid one behind the other. */
static void update_block(grad_t *w, const grad_t *g, grad_t *m, grad_t *v,
			 const struct optim_range *ranges, int nr, size_t from,
			 const struct adam *s, double lr)
{
	size_t left = BLOCK;

	for (int i = 0; i < nr && left; i++) {
		size_t at = ranges[i].offset + from, n;

		if (from >= ranges[i].numel) {
			from -= ranges[i].numel;
			continue;
		}
		n = MIN(ranges[i].numel - from, left);
		update(w + at, g + at, m + at, v + at, n, s, lr * ranges[i].decay);
		left -= n;
		from = 0;
	}
}

void k_adamw(param_t *w, grad_t *master, const grad_t *g, grad_t *m, grad_t *v,
	     const struct optim_range *ranges, int nr, const struct optim_hyper *hp,
	     const struct optim_state *st)
{
	const struct adam s = adam_of(hp, st);
	size_t total = 0;

	assert(w == master);
	if (st->skip)
		return;
	for (int i = 0; i < nr; i++)
		total += ranges[i].numel;
#pragma omp parallel for schedule(static) if (total >= SPLIT_MIN)
	for (size_t from = 0; from < total; from += BLOCK)
		update_block(w, g, m, v, ranges, nr, from, &s, st->lr);
}
