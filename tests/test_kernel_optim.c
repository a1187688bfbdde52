/* SPDX-License-Identifier: MIT */
/*
 * Golden steps of the optimizer: runs of k_adam_norm(), k_optim_guard(), k_adam_decide()
 * and k_adamw() against the definition, one element after the other in double; frozen
 * tensors, masters and spans; the mean loss.
 */
#include "kernel.h"

enum { MAX_STEPS = 150 };

/*
 * The moments forget at beta, so that an error of a few roundings per step levels out
 * at 1 / (1 - beta) = 20 times that; a weight collects one rounding and one update's
 * error per step, which is in its size below.
 */
#define MOMENT_TOL (100 * UNIT + 4 * NORM_TOL(r.n))	/* v has the norm's square */
#define WEIGHT_TOL (300 * UNIT)
/* The norm: elements rounded when they were clipped, two sums of n squares in double. */
#define NORM_TOL(n) (8 * UNIT + (n) * 0x1p-53)
/* z divides by a deviation of at least a hundredth of the norm. */
#define Z_TOL (10000 * UNIT)

/* A run: its settings, inputs that depend on the step, and what comes out. */
static struct {
	const char *name;
	struct adam_hyper hp;
	struct optim_range *ranges;
	int nr, steps;
	size_t n;
	bool masters;			/* apart from the weights */
	size_t cut;			/* 0, or where two spans meet */
	param_t *w0;			/* [n] */
	grad_t *noise;			/* [n] */
	double scale[MAX_STEPS];	/* of the gradient; NaN poisons one element */
	double loss[MAX_STEPS], lr[MAX_STEPS];
	param_t *w;			/* [n] */
	grad_t *m, *v, *master;		/* [n] */
	struct adam_state *state;	/* after each step */
	int32_t *bad;			/* [steps] first element that was not finite */
} r;

static const struct adam_hyper spam = {
	.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .grad_clip = 1, .inv_accum = 0.25,
	.theta = 5, .spike = 2, .clip_after = 4, .interval = 17, .warmup = 6,
};

/* Gradient sum of element @i: noise that moves with the step, a few far outliers. */
static grad_t gradient(int step, size_t i)
{
	grad_t g = r.noise[(i + 17 * step) % r.n] * (1 + (int)(i % 3)) / sqrt(r.n);

	if (isnan(r.scale[step]))
		return i == r.n / 2 ? NAN : g;
	if (isinf(r.scale[step]))
		return i == r.n / 2 ? INFINITY : g;
	return g * r.scale[step] * ((i + step) % 50 == 7 ? 40 : 1);
}

static struct adam_buffers buffers(const grad_t *g, size_t from)
{
	return (struct adam_buffers){
		.g = g + from, .m = r.m + from, .v = r.v + from, .w = r.w,
		.master = r.masters ? r.master + from : NULL,
	};
}

/* One update by one span, or by two as ranks would share it. */
static void call_update(const grad_t *g, double *partial, int32_t *bad, int step,
			struct adam_state *st)
{
	struct optim_span span[2] = { { .offset = 0, .n = r.cut ? r.cut : r.n },
				      { .offset = r.cut, .n = r.n - r.cut } };
	int nr = r.cut ? 2 : 1;

	for (int i = 0; i < nr; i++) {
		struct adam_buffers x = buffers(g, span[i].offset);

		span[i].ranges = r.ranges;
		span[i].nr = r.nr;
		k_adam_norm(partial, bad, &x, &span[i], &r.hp, st);
	}
	k_optim_guard(&st->common, partial, (r.n + OPTIM_CHUNK - 1) / OPTIM_CHUNK, &r.loss[step]);
	k_adam_decide(st, &r.lr[step], &r.hp);
	for (int i = 0; i < nr; i++) {
		struct adam_buffers x = buffers(g, span[i].offset);

		k_adamw(&x, &span[i], &r.hp, st);
	}
}

static void call_run(void)
{
	size_t parts = (r.n + OPTIM_CHUNK - 1) / OPTIM_CHUNK;
	grad_t *g = xmalloc(r.n * sizeof(*g));
	double *partial = xmalloc((parts + 1) * sizeof(*partial));
	int32_t *bad = xmalloc(parts * sizeof(*bad));
	struct adam_state st = { 0 };

	memset(r.m, 0, r.n * sizeof(*r.m));
	memset(r.v, 0, r.n * sizeof(*r.v));
	k_widen(r.master, r.w, r.n);
	partial[parts] = NAN;	/* no part of the sum */
	for (int i = 0; i < r.steps; i++) {
		for (size_t j = 0; j < r.n; j++)
			g[j] = gradient(i, j);
		call_update(g, partial, bad, i, &st);
		arch_sync();
		r.state[i] = st;
		r.bad[i] = -1;
		for (size_t c = parts; c--;)
			if (bad[c] >= 0)
				r.bad[i] = (int32_t)(c * OPTIM_CHUNK) + bad[c];
	}
	free(g);
	free(partial);
	free(bad);
}

/* The definition's own memory; sizes bound the magnitude of what was summed. */
struct ref {
	double *g, *w, *m, *v, *m_size, *w_size;
	double norms[MAX_STEPS];
	int nr_norms, applied, count, since_reset, skipped, row, spikes, resets;
};

/* The tensor of an element; NULL: padding. */
static const struct optim_range *range_of(size_t i)
{
	for (int k = 0; k < r.nr; k++)
		if (i >= r.ranges[k].offset && i < r.ranges[k].offset + r.ranges[k].numel)
			return &r.ranges[k];
	return NULL;
}

static bool trained(size_t i)
{
	return range_of(i) && !range_of(i)->frozen;
}

/* Steps 1 and 2 of the specification. */
static double ref_norm(struct ref *f, int step)
{
	double corr = 1 - pow(r.hp.beta2, f->count), sum = 0;

	for (size_t i = 0; i < r.n; i++) {
		double g = gradient(step, i) * r.hp.inv_accum, most = 0;

		if (r.hp.theta && f->count >= r.hp.clip_after && f->count)
			most = r.hp.theta * f->v[i] / corr;
		if (!trained(i))
			g = 0;
		if (most > 0 && isfinite(g) && g * g > most)
			g = copysign(sqrt(most), g);
		f->g[i] = g;
		sum += g * g;
	}
	return sqrt(sum);
}

/* Point 3: over the at most 100 norms before this one. */
static double ref_z(const struct ref *f, double norm)
{
	int first = MAX(f->nr_norms - 100, 0), n = f->nr_norms - first;
	double mean = 0, var = 0;

	for (int i = first; i < f->nr_norms; i++)
		mean += f->norms[i] / n;
	for (int i = first; i < f->nr_norms; i++)
		var += pow(f->norms[i] - mean, 2) / n;
	return n < 10 || var == 0 ? 0 : (norm - mean) / sqrt(var);
}

/* Factor f of point 6: n updates after a reset. */
static double ref_warm(const struct ref *f)
{
	int n = f->since_reset;

	if (!f->resets || !r.hp.warmup || n > r.hp.warmup)
		return 1;
	return MAX(1e-3, 0.5 * (1 - cos(M_PI * n / r.hp.warmup)));
}

static void ref_update(struct ref *f, double lr, double clip, bool spike)
{
	double b1 = r.hp.beta1, b2 = r.hp.beta2;

	for (size_t i = 0; i < r.n; i++) {
		double g = f->g[i] * clip, mhat, vhat;

		if (!trained(i))
			continue;
		if (spike) {
			f->m[i] /= 2;
			f->m_size[i] /= 2;
			f->v[i] *= 0.9;
		}
		f->m[i] = b1 * f->m[i] + (1 - b1) * g;
		f->m_size[i] = b1 * f->m_size[i] + (1 - b1) * fabs(g);
		f->v[i] = b2 * f->v[i] + (1 - b2) * g * g;
		mhat = f->m[i] / (1 - pow(b1, f->count));
		vhat = f->v[i] / (1 - pow(b2, f->count));
		f->w_size[i] += fabs(f->w[i]) + lr * f->m_size[i] / (1 - pow(b1, f->count)) /
							(sqrt(vhat) + r.hp.epsilon);
		f->w[i] -= lr * (mhat / (sqrt(vhat) + r.hp.epsilon) + range_of(i)->decay * f->w[i]);
	}
}

static bool state_right(const struct adam_state *st, const struct ref *f, double norm, double z,
			bool skip, bool spike, bool reset)
{
	const struct optim_state *c = &st->common;
	bool good = c->applied == f->applied && st->count == f->count &&
		    c->skipped == f->skipped && c->skipped_row == f->row &&
		    st->spikes == f->spikes && st->resets == f->resets && c->skip == skip &&
		    st->spike_now == spike && st->reset_now == reset &&
		    st->nr_norms == MIN(f->nr_norms, 100);

	if (isfinite(norm))
		good &= near(c->norm, norm, norm, NORM_TOL(r.n));
	else
		good &= !isfinite(c->norm);
	return good && near(st->z, z, 1 + fabs(z), Z_TOL);
}

/* One update of the definition, compared with what the kernels decided. */
static bool ref_step(struct ref *f, int step)
{
	const struct adam_state *st = &r.state[step];
	double norm = ref_norm(f, step), z, clip = 1;
	bool spike, reset;

	if (!isfinite(norm) || !isfinite(r.loss[step])) {
		f->skipped++;
		f->row++;
		return state_right(st, f, norm, 0, true, false, false);
	}
	z = ref_z(f, norm);
	spike = r.hp.spike && z > r.hp.spike;
	f->norms[f->nr_norms++] = norm;
	f->row = 0;
	f->spikes += spike;
	f->applied++;
	f->count++;
	f->since_reset++;
	if (r.hp.grad_clip)
		clip = MIN(1, r.hp.grad_clip / norm);
	ref_update(f, r.lr[step] * ref_warm(f), clip, spike);
	reset = r.hp.interval && f->applied % r.hp.interval == 0;
	if (reset) {
		memset(f->m, 0, r.n * sizeof(*f->m));
		memset(f->m_size, 0, r.n * sizeof(*f->m_size));
		memset(f->v, 0, r.n * sizeof(*f->v));
		f->count = f->since_reset = 0;
		f->resets++;
	}
	return state_right(st, f, norm, z, false, spike, reset);
}

static bool reference_agrees(void)
{
	struct ref f = { 0 };
	double **all[] = { &f.g, &f.w, &f.m, &f.v, &f.m_size, &f.w_size };
	bool good = true;

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		*all[i] = xcalloc(r.n, sizeof(double));
	for (size_t i = 0; i < r.n; i++)
		f.w[i] = real(r.w0[i]);
	for (int i = 0; i < r.steps && good; i++) {
		good = ref_step(&f, i);
		if (!good)
			diag("step %d", i);
	}
	for (size_t i = 0; i < r.n && good; i++)
		good = near(r.m[i], f.m[i], f.m_size[i], MOMENT_TOL) &&
		       near(r.v[i], f.v[i], f.v[i], MOMENT_TOL) &&
		       near(r.masters ? r.master[i] : real(r.w[i]), f.w[i], f.w_size[i],
			    WEIGHT_TOL);
	diag("%s: %d applied, %d skipped, %d spikes, %d resets", r.name, f.applied, f.skipped,
	     f.spikes, f.resets);
	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		free(*all[i]);
	return good;
}

/* What is frozen or padding is as it was; the weights are their masters'. */
static bool rest_untouched(void)
{
	bool good = true;

	for (size_t i = 0; i < r.n; i++) {
		good &= !r.masters || real(r.w[i]) == real(act(r.master[i]));
		good &= trained(i) ||
			(real(r.w[i]) == real(r.w0[i]) && r.m[i] == 0 && r.v[i] == 0);
	}
	return good;
}

/* The first element that was not finite, where it is one of a tensor that is trained. */
static bool bad_found(void)
{
	bool good = true;

	for (int i = 0; i < r.steps; i++) {
		bool bad = !isfinite(r.scale[i]) && trained(r.n / 2);

		good &= r.bad[i] == (bad ? (int32_t)(r.n / 2) : -1);
	}
	return good;
}

static void test_run(const char *name, size_t n, int steps, struct adam_hyper hp,
		     struct optim_range *ranges, int nr)
{
	size_t bytes = n * sizeof(grad_t), low = n * sizeof(param_t);
	size_t states = steps * sizeof(struct adam_state), ints = steps * sizeof(int32_t);
	struct out out[] = { { guarded(low), low, NULL }, { guarded(bytes), bytes, NULL },
			     { guarded(bytes), bytes, NULL }, { guarded(states), states, NULL },
			     { guarded(bytes), bytes, NULL }, { guarded(ints), ints, NULL } };

	r.name = name, r.hp = hp, r.ranges = ranges, r.nr = nr, r.steps = steps, r.n = n;
	r.w0 = normals(n), r.noise = normals_acc(n);
	r.w = out[0].x, r.m = out[1].x, r.v = out[2].x, r.state = out[3].x;
	r.master = out[4].x, r.bad = out[5].x;
	out[0].before = r.w0;
	for (int i = 0; i < steps; i++) {
		r.scale[i] = i % 23 == 21 ? 15 : 1 + 0.1 * (i % 5);	/* spikes */
		r.loss[i] = i == 11 ? INFINITY : 3;
		r.lr[i] = 1e-2 * (i + 1) / steps;
		if (i == 6 || i == 7 || i == 40)			/* skipped */
			r.scale[i] = i == 7 ? INFINITY : NAN;
	}
	ok(threads_agree(call_run, out, 6) && reference_agrees(), "optim_golden_steps %s", name);
	ok(rest_untouched(), "optim_touches_only_what_is_trained %s", name);
	ok(bad_found(), "optim_finds_the_first_nonfinite_element %s", name);
	for (size_t i = 0; i < ARRAY_SIZE(out); i++)
		unguard(out[i].x);
	unguard(r.w0), unguard(r.noise);
}

/* Two spans give the bits of one. */
static void test_spans(struct optim_range *ranges, int nr)
{
	size_t n = ranges[nr - 1].offset + ranges[nr - 1].numel;
	param_t *one = xmalloc(n * sizeof(*one));

	r.hp = spam, r.ranges = ranges, r.nr = nr, r.n = n, r.steps = 24;
	r.w0 = normals(n), r.noise = normals_acc(n);
	r.w = xmalloc(n * sizeof(*r.w)), r.m = xmalloc(n * sizeof(*r.m));
	r.v = xmalloc(n * sizeof(*r.v)), r.master = xmalloc(n * sizeof(*r.master));
	r.state = xcalloc(r.steps, sizeof(*r.state)), r.bad = xcalloc(r.steps, sizeof(*r.bad));
	for (int cut = 0; cut < 2; cut++) {
		r.cut = cut * OPTIM_CHUNK;
		memcpy(r.w, r.w0, n * sizeof(*r.w));
		call_run();
		if (!cut)
			memcpy(one, r.w, n * sizeof(*one));
	}
	ok(!memcmp(one, r.w, n * sizeof(*one)), "optim_spans_give_the_same_bits");
	r.cut = 0;
	free(one), free(r.w), free(r.m), free(r.v), free(r.master), free(r.state), free(r.bad);
	unguard(r.w0), unguard(r.noise);
}

/* x[from, from + n): the largest power of two first (older), the rest by itself. */
static double fold_apart(const double *x, int n)
{
	int half = 1;

	if (n == 1)
		return x[0];
	while (2 * half < n)
		half *= 2;
	return fold_apart(x, half) + fold_apart(x + half, n - half);
}

static void loss_is_summed_as_gradients_are(void)
{
	double x[100], mean;
	int wrong = 0;

	for (int i = 0; i < 100; i++)
		x[i] = rng_normal(3, 1, i);
	for (int n = 1; n <= 100; n++) {
		k_loss_tree(&mean, x, n);
		arch_sync();
		if (mean != fold_apart(x, n) / n)
			wrong = n;
	}
	ok(!wrong, "loss_tree_is_the_fixed_tree (1 to 100 losses)");
}

/* A frozen range with a rate moves against the signs of its gradient, unless it is skipped. */
static void frozen_range_follows_signs(void)
{
	static const grad_t g[] = { -3, 0, 2, 1e-30, -0.0, 7 };
	enum { N = ARRAY_SIZE(g) };
	struct optim_range range = { 0, N, 0, 1, 1, 0.25 };
	struct optim_span span = { 0, N, &range, 1 };
	struct adam_state st = { .corr1 = 1, .corr2 = 1, .lr = 1 };
	grad_t w[N] = { 1, 1, 1, 1, 1, 1 }, master[N], m[N] = { 0 }, v[N] = { 0 };
	struct adam_buffers x = { g, m, v, master, (param_t *)w };
	bool good = true;

	for (int skip = 1; skip >= 0; skip--) {
		st.common.skip = skip;
		k_adamw(&x, &span, &spam, &st);
		arch_sync();
		for (int i = 0; i < N; i++)
			good &= w[i] == 1 - (skip ? 0 : 0.25 * ((g[i] > 0) - (g[i] < 0))) &&
				(skip || master[i] == w[i]) && !m[i] && !v[i];
	}
	ok(good, "frozen_range_follows_signs");
}

int main(void)
{
	struct optim_range small[] = { { 0, 64, 0.1, 0, 0, 0 }, { 64, 1, 0, 0, 0, 0 },
				       { 65, 7, 0.1, 0, 0, 0 }, { 72, 300, 0, 0, 0, 0 },
				       { 372, 628, 0.3, 0, 0, 0 } };
	struct optim_range large[] = { { 0, 16390, 0.1, 0, 0, 0 }, { 16390, 2, 0, 0, 0, 0 },
				       { 16392, 150001, 0.1, 0, 0, 0 } };
	/* padding behind three of them */
	struct optim_range frozen[] = { { 0, 60, 0.1, 0, 0, 0 }, { 64, 1, 0, 0, 0, 0 },
					{ 70, 600, 0.1, 1, 0, 0 }, { 700, 300, 0.2, 0, 0, 0 } };
	const bool always = sizeof(param_t) != sizeof(grad_t);
	struct adam_hyper hp = spam;

	device_open(0);
	r.masters = always;
	test_run("all mechanisms", 1000, 150, hp, small, 5);
	test_run("all mechanisms, many blocks", 166393, 24, hp, large, 3);
	test_run("frozen and padding", 1000, 60, hp, frozen, 4);
	r.masters = true;
	test_run("masters", 1000, 60, hp, small, 5);
	test_run("masters, frozen and padding", 1000, 60, hp, frozen, 4);
	r.masters = always;
	hp.warmup = 0;
	test_run("reset without warmup", 1000, 60, hp, small, 5);
	hp.interval = 0;
	test_run("no reset", 1000, 60, hp, small, 5);
	hp.clip_after = 0;
	test_run("element clip from the start", 1000, 60, hp, small, 5);
	hp.theta = 0;
	test_run("no element clip", 1000, 60, hp, small, 5);
	hp.spike = 0;
	test_run("AdamW", 1000, 60, hp, small, 5);
	hp.grad_clip = 0;
	test_run("AdamW without norm clip", 1000, 60, hp, small, 5);
	test_spans(large, 3);
	loss_is_summed_as_gradients_are();
	if (IS_ENABLED(CONFIG_ARCH_CPU))
		frozen_range_follows_signs();
	return tap_done();
}
