// SPDX-License-Identifier: MIT
/*
 * The optimizer of this binary, update by update, against its rule written down once
 * more in double, on a small model of three tensors.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "model.h"
#include "optim.h"
#include "tap.h"
#include "util.h"

enum { ELEMS = 256, NR_TOYS = 4, MICROS = CONFIG_GRADIENT_ACCUMULATION };

static const struct param toy_params[NR_TOYS] = {
	{ .name = "matrix", .ndim = 2, .dims = { 3, 4 }, .flags = DECAY },
	{ .name = "bias", .ndim = 1, .dims = { 5 }, .flags = NO_DECAY },
	{ .name = "cube", .ndim = 3, .dims = { 2, 2, 2 }, .flags = DECAY },
	{ .name = "frozen", .ndim = 1, .dims = { 6 }, .flags = DECAY | FROZEN },
};

static struct param_entry toy_entries[NR_TOYS] = {
	{ "matrix", &toy_params[0], 0, 12 }, { "bias", &toy_params[1], 64, 5 },
	{ "cube", &toy_params[2], 128, 8 }, { "frozen", &toy_params[3], 192, 6 },
};

static struct model toy = { .entries = toy_entries, .nr_entries = NR_TOYS, .param_elems = ELEMS };

/* struct ref - the optimizer written down once more, in double, list by list */
struct ref {
	double w[ELEMS], m[ELEMS], v[ELEMS], g[ELEMS];
	double norms[10000];
	int nr_norms, count, applied, warm, skipped, spikes, resets;
};

enum {
	SPAM = IS_ENABLED(CONFIG_OPTIM_ADAMWSPAM),
	CLIP = SPAM && IS_ENABLED(CONFIG_SPAM_ENABLE_CLIP),
	RESET = SPAM && IS_ENABLED(CONFIG_SPAM_PERIODIC_RESET),
	RESET_STEPS = RESET ? CONFIG_SPAM_INTERVAL : 1,
	WARM = RESET && IS_ENABLED(CONFIG_SPAM_WARMUP),
	WARM_STEPS = WARM ? CONFIG_SPAM_WARMUP_STEPS : 1,
};

static double toy_decay(int k)
{
	for (int i = 0; i < NR_TOYS; i++)
		if (k >= (int)toy_entries[i].offset &&
		    k < (int)(toy_entries[i].offset + toy_entries[i].numel))
			return toy_params[i].flags & DECAY ? CONFIG_WEIGHT_DECAY : 0;
	return 0;
}

static bool toy_frozen(int k)
{
	return k >= (int)toy_entries[NR_TOYS - 1].offset;
}

/* What is infinite stays so, that the update is skipped and not mended. */
static void ref_clip(struct ref *r)
{
	for (int k = 0; k < ELEMS && r->count && r->count >= CONFIG_SPAM_CLIP_AFTER; k++) {
		double vhat = r->v[k] / (1 - pow(CONFIG_ADAM_BETA2, r->count));

		if (vhat > 0 && isfinite(r->g[k]) && r->g[k] * r->g[k] > CONFIG_SPAM_THETA * vhat)
			r->g[k] = copysign(sqrt(CONFIG_SPAM_THETA * vhat), r->g[k]);
	}
}

/* Whether norm n is a spike against the last norms. */
static bool ref_spike(const struct ref *r, double n)
{
	int from = r->nr_norms > ADAM_WINDOW ? r->nr_norms - ADAM_WINDOW : 0;
	double mean = 0, var = 0;

	for (int i = from; i < r->nr_norms; i++)
		mean += r->norms[i] / (r->nr_norms - from);
	for (int i = from; i < r->nr_norms; i++)
		var += pow(r->norms[i] - mean, 2) / (r->nr_norms - from);
	return SPAM && CONFIG_SPAM_SPIKE_THRESHOLD > 0 && r->nr_norms >= 10 && var > 0 &&
	       (n - mean) / sqrt(var) > CONFIG_SPAM_SPIKE_THRESHOLD;
}

static void ref_adam(struct ref *r, double lr, double scale)
{
	const double b1 = CONFIG_ADAM_BETA1, b2 = CONFIG_ADAM_BETA2;

	r->count++;
	for (int k = 0; k < ELEMS; k++) {
		double g = r->g[k] * scale, mhat, vhat;

		if (toy_frozen(k))
			continue;
		r->m[k] = b1 * r->m[k] + (1 - b1) * g;
		r->v[k] = b2 * r->v[k] + (1 - b2) * g * g;
		mhat = r->m[k] / (1 - pow(b1, r->count));
		vhat = r->v[k] / (1 - pow(b2, r->count));
		r->w[k] -= lr * (mhat / (sqrt(vhat) + CONFIG_ADAM_EPSILON) + toy_decay(k) * r->w[k]);
	}
}

static double ref_warmup(struct ref *r)
{
	double f = 1;

	if (r->warm) {
		f = fmax(1e-3, 0.5 * (1 - cos(M_PI * r->warm / WARM_STEPS)));
		if (++r->warm > WARM_STEPS)
			r->warm = 0;
	}
	return f;
}

static void ref_reset(struct ref *r)
{
	if (!RESET || r->applied % RESET_STEPS)
		return;
	memset(r->m, 0, sizeof(r->m));
	memset(r->v, 0, sizeof(r->v));
	r->count = 0;
	r->resets++;
	r->warm = WARM;
}

/* One update; the norm. */
static double ref_update(struct ref *r, double lr, double loss)
{
	double norm = 0;

	if (CLIP)
		ref_clip(r);
	for (int k = 0; k < ELEMS; k++)
		norm += r->g[k] * r->g[k];
	norm = sqrt(norm);
	if (!isfinite(norm) || !isfinite(loss)) {
		r->skipped++;
		return norm;
	}
	if (ref_spike(r, norm)) {
		r->spikes++;
		for (int k = 0; k < ELEMS; k++) {
			r->m[k] /= 2;
			r->v[k] *= 0.9;
		}
	}
	r->norms[r->nr_norms++] = norm;
	lr *= ref_warmup(r);
	ref_adam(r, lr, CONFIG_GRAD_CLIP > 0 ? fmin(1, CONFIG_GRAD_CLIP / norm) : 1);
	r->applied++;
	ref_reset(r);
	return norm;
}

enum { GOLDEN_STEPS = 1150 };	/* past a reset of the default interval, 1000 */

/* Rounding of one update to grad_t: a dozen operations, of values near w, m or v. */
static const double golden_tolerance = sizeof(grad_t) == 4 ? 12 * 0x1p-24 : 12 * 0x1p-52;

/*
 * Gradients with single spikes, spikes of the norm, and NaN or infinity now and then. What
 * stands at frozen elements does not count.
 */
static void golden_grad(grad_t *g, int step, double *loss)
{
	double size = step % 137 == 60 ? 20 : 0.1;

	*loss = step == 333 ? NAN : 2;
	for (int i = 0; i < NR_TOYS; i++)
		for (size_t k = toy_entries[i].offset;
		     k < toy_entries[i].offset + toy_entries[i].numel; k++)
			g[k] = (grad_t)(size * CONFIG_GRADIENT_ACCUMULATION *
					rng_normal(7, step, k));
	if (step % 50 == 20)
		g[66] *= 500;
	if (step == 200)
		g[65] = NAN;
	if (step == 201)
		g[130] = INFINITY;
	if (step == 202)
		g[194] = NAN;
}

/* Compare one buffer with the reference and take it over; whether it was close. */
static bool compare(double *ref, const void *device, double floor)
{
	grad_t host[ELEMS];
	bool close = true;

	arch_get(host, device, sizeof(host));
	for (int k = 0; k < ELEMS; k++) {
		close &= fabs(ref[k] - host[k]) <= golden_tolerance * (fabs(ref[k]) + floor);
		ref[k] = host[k];
	}
	return close;
}

/* The state after the update that was started last. */
static struct adam_state *get_state(const struct optim *o)
{
	static union optim_memory st;
	static struct arch_mark mark;
	double loss[2];

	optim_get_later(o, &st, loss);
	arch_mark_set(&mark);
	arch_mark_wait(&mark);
	return (struct adam_state *)&st;
}

/* Losses of micro-batches whose mean is @loss. */
static void put_losses(const struct optim *o, double loss)
{
	double x[2 * MICROS] = { 0 };

	for (int i = 0; i < MICROS; i++) {
		x[i] = loss + (MICROS % 2 && i == MICROS - 1 ? 0 : i % 2 ? 0.5 : -0.5);
		x[MICROS + i] = i;
	}
	arch_put(o->losses, x, sizeof(x));
}

static void nonfinite_is_named(struct optim *o, grad_t *dg)
{
	grad_t g[ELEMS] = { 0 };

	put_losses(o, 2);
	g[193] = NAN;
	arch_put(dg, g, sizeof(g));
	optim_update(o, &toy, dg, 1e-3);
	ok(!optim_nonfinite(o, &toy), "optim_nonfinite_finds_nothing_in_finite_gradients");
	g[66] = INFINITY;
	g[129] = NAN;
	arch_put(dg, g, sizeof(g));
	optim_update(o, &toy, dg, 1e-3);
	ok(!strcmp(optim_nonfinite(o, &toy), "bias"), "optim_nonfinite_names_the_first_tensor");
}

static void losses_are_means_of_micro_batches(struct optim *o)
{
	double x[2 * MICROS], got[2];
	union optim_memory st;

	for (int i = 0; i < 2 * MICROS; i++)
		x[i] = i;
	arch_put(o->losses, x, sizeof(x));
	optim_update(o, &toy, (grad_t *)toy.w + ELEMS, 0);
	optim_get_later(o, &st, got);
	arch_sync();
	ok(got[0] == (MICROS - 1) / 2.0 && got[1] == MICROS + (MICROS - 1) / 2.0 &&
	   st.common.loss == got[0], "losses_are_means_of_micro_batches: %g %g", got[0], got[1]);
}

/* The scalars' table covers the state: what is written and read is all of it. */
static void scalars_cover_the_state(void)
{
	size_t bytes = sizeof(struct optim_state);

	for (int i = 0; i < optim_rule.nr_scalars; i++) {
		const struct optim_scalar *s = &optim_rule.scalars[i];

		bytes += (size_t)s->count * (s->real ? sizeof(double) : sizeof(int64_t));
		for (int j = 0; j < i; j++)
			if (s->offset == optim_rule.scalars[j].offset)
				bytes = 0;
	}
	ok(bytes == optim_rule.state_size && bytes <= OPTIM_STATE_MAX &&
	   optim_rule.nr_buffers <= OPTIM_BUFFERS, "scalars_cover_the_state: %zu of %zu bytes",
	   bytes, optim_rule.state_size);
}

static void optim_follows_the_update_rule(void)
{
	size_t bytes = ROUND_UP(optim_bytes(ELEMS, NR_TOYS) + 2 * ELEMS * sizeof(grad_t), TENSOR_ALIGN);
	char *mem = arch_alloc(bytes);
	int bad_w = -1, bad_m = -1, bad_v = -1, bad_norm = -1, bad_skip = -1;
	bool changed = false;
	static struct ref r;
	grad_t g[ELEMS] = { 0 }, after[ELEMS], *dg = (grad_t *)mem + ELEMS, *weights;
	struct adam_state *st;
	struct optim o = { 0 };

	toy.w = (param_t *)mem;
	for (int k = 0; k < ELEMS; k++)
		g[k] = toy_decay(k) > 0 || (k >= 64 && k < 69) ? (grad_t)rng_normal(3, 0, k) : 0;
	optim_place(&o, &toy, mem + 2 * ELEMS * sizeof(grad_t));
	weights = OPTIM_MASTER ? o.master : (grad_t *)toy.w;
	arch_put(weights, g, sizeof(g));
	compare(r.w, weights, 0);
	for (int step = 0; step < GOLDEN_STEPS; step++) {
		double loss, norm, lr = 1e-3;

		memset(g, 0, sizeof(g));
		golden_grad(g, step, &loss);
		for (int k = 0; k < ELEMS; k++)
			r.g[k] = toy_frozen(k) ? 0 : (double)g[k] / CONFIG_GRADIENT_ACCUMULATION;
		arch_put(dg, g, sizeof(g));
		put_losses(&o, loss);
		optim_update(&o, &toy, dg, lr);
		arch_get(after, dg, sizeof(after));
		changed |= memcmp(after, g, sizeof(g)) != 0;
		st = get_state(&o);
		norm = ref_update(&r, lr, loss);
		bad_w = compare(r.w, weights, lr) ? bad_w : step;
		bad_m = compare(r.m, o.buf[0], 0.1) ? bad_m : step;
		bad_v = compare(r.v, o.buf[1], 0.01) ? bad_v : step;
		if (isfinite(norm) && fabs(st->common.norm - norm) > golden_tolerance * norm)
			bad_norm = step;
		if (st->common.skip != (!isfinite(norm) || !isfinite(loss)))
			bad_skip = step;
	}
	ok(bad_w < 0, "optim_follows_the_update_rule: weights (%d)", bad_w);
	ok(bad_m < 0 && bad_v < 0, "optim_follows_the_update_rule: moments (%d %d)", bad_m, bad_v);
	ok(bad_norm < 0, "optim_follows_the_update_rule: norm (%d)", bad_norm);
	ok(bad_skip < 0 && st->common.skipped == 3 && r.skipped == 3 && !st->common.skipped_row,
	   "optim_skips_what_is_not_finite (%d)", bad_skip);
	ok(st->common.applied == r.applied && st->count == r.count && st->resets == r.resets &&
	   st->spikes == r.spikes, "optim_counts: applied %d, count %d, resets %d, spikes %d",
	   r.applied, r.count, r.resets, r.spikes);
	ok(!SPAM || !(CONFIG_SPAM_SPIKE_THRESHOLD > 0) || r.spikes, "optim_golden_run_has_spikes");
	ok(!RESET || GOLDEN_STEPS <= CONFIG_SPAM_INTERVAL || r.resets, "optim_golden_run_has_resets");
	ok(!changed, "optim_changes_no_gradient");
	nonfinite_is_named(&o, dg);
	losses_are_means_of_micro_batches(&o);
	arch_free(mem, bytes);
}

int main(void)
{
	arch_init(0, 1);
	scalars_cover_the_state();
	optim_follows_the_update_rule();
	return tap_done();
}
