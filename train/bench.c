// SPDX-License-Identifier: MIT
/*
 * tenon bench: time training steps of this binary on random tokens: as many
 * micro-batches and sequences as the configuration says, without data and log.
 */
#include <jansson.h>
#include <stdlib.h>

#include "arch.h"
#include "dist.h"
#include "options.h"
#include "train.h"
#include "util.h"

enum { FORWARD, BACKWARD, MERGE, UPDATE, WHOLE, STAGES };

static const char *const stage_names[STAGES] = {
	[FORWARD] = "forward", [BACKWARD] = "backward", [MERGE] = "merge",
	[UPDATE] = "update", [WHOLE] = "step",
};

/* seconds[stage][step] */
struct times {
	double *seconds[STAGES];
};

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *x, int n)
{
	qsort(x, n, sizeof(*x), ascending);
	return (x[(n - 1) / 2] + x[n / 2]) / 2;
}

/* Tokens of micro-batch @micro, uniform over the vocabulary. */
static void random_tokens(int32_t *tok, uint64_t seed, uint64_t micro)
{
	const int n = B_MAX * (T_MAX + 1);

	for (int i = 0; i < n; i++)
		tok[i] = rng_u64(seed, hash_name("bench"), micro * n + i) % CONFIG_VOCAB_SIZE;
}

/* The time since *@from goes to a stage. */
static void lap(struct times *t, int stage, int step, double *from)
{
	double at;

	arch_sync();
	at = now();
	t->seconds[stage][step] += at - *from;
	*from = at;
}

static void time_step(struct run *r, struct times *t, int step)
{
	int n = CONFIG_GRADIENT_ACCUMULATION / dist_size();
	double start = now(), at = start, loss = 0;
	grad_t *grad;

	for (int j = 0; j < n; j++) {
		r->m.dw = accum_leaf(&r->accum);
		random_tokens(r->tok, r->st.seed, (uint64_t)step * n + j);
		at = now();
		model_forward(&r->m, r->tok, B_MAX, T_MAX, true);
		lap(t, FORWARD, step, &at);
		model_backward(&r->m, B_MAX, T_MAX);
		lap(t, BACKWARD, step, &at);
		accum_push(&r->accum, r->m.dw);
		loss += model_loss(&r->m) / n;
		lap(t, MERGE, step, &at);
	}
	grad = accum_fold(&r->accum);
	lap(t, MERGE, step, &at);
	optim_update(&r->optim, &r->m, grad, schedule_lr(step, r->st.total), loss);
	lap(t, UPDATE, step, &at);
	for (int i = 0; i < WHOLE; i++)
		t->seconds[WHOLE][step] += t->seconds[i][step];
}

static void print_times(struct times *t, int steps, double tokens)
{
	double whole = median(t->seconds[WHOLE], steps);

	printf("%.0f tok/s, %.3f ms/step (median of %d steps of %.0f tokens)\n", tokens / whole,
	       whole * 1e3, steps, tokens);
	for (int i = 0; i < WHOLE; i++) {
		double s = median(t->seconds[i], steps);

		printf("  %-9s %10.3f ms  %4.1f %%\n", stage_names[i], s * 1e3, 100 * s / whole);
	}
}

static void print_json(const struct run *r, struct times *t, int steps, double tokens)
{
	json_t *o = json_object();

	for (int i = 0; i < STAGES; i++)
		json_object_set_new(o, stage_names[i], json_real(median(t->seconds[i], steps)));
	json_object_set_new(o, "steps", json_integer(steps));
	json_object_set_new(o, "tokens", json_real(tokens));
	json_object_set_new(o, "elements", json_integer(r->m.param_elems));
	json_object_set_new(o, "flops", json_real(r->plan.flops_token * tokens));
	json_object_set_new(o, "device", json_string(arch_describe()));
	json_dumpf(o, stdout, JSON_INDENT(1) | JSON_PRESERVE_ORDER);
	putchar('\n');
	json_decref(o);
}

int verb_bench(int argc, char **argv)
{
	int64_t steps = 10, warmup = 2, seed = CONFIG_SEED, device = 0, threads = 0;
	bool json = false;
	const struct opt opts[] = {
		{ "steps", OPT_INT, &steps, 1, 1e6, "steps that are timed" },
		{ "warmup", OPT_INT, &warmup, 0, 1e6, "steps before them" },
		{ "seed", OPT_INT, &seed, 0, INT32_MAX, "of weights and tokens" },
		{ "json", OPT_FLAG, &json, 0, 0, "seconds by stage, for scripts" },
		{ "device", OPT_INT, &device, 0, 1023, "device number" },
		{ "threads", OPT_INT, &threads, 0, 4096, "cpu threads, 0 = all" },
	};
	static struct run r;
	struct times t;

	options_parse("bench", "", opts, ARRAY_SIZE(opts), argc, argv);
	dist_init();
	arch_init(device, threads);
	model_layout(&r.m);
	model_plan(&r.m, &r.plan, PHASE_TRAIN, 0);
	plan_refuse(&r.plan);
	r.st = (struct ckpt_state){ .seed = seed, .total = warmup + steps };
	run_place(&r);
	model_init_params(&r.m, seed);
	for (int i = 0; i < STAGES; i++)
		t.seconds[i] = xcalloc(warmup + steps, sizeof(double));
	for (int i = 0; i < warmup + steps; i++)
		time_step(&r, &t, i);
	for (int i = 0; i < STAGES; i++)
		t.seconds[i] += warmup;
	if (json)
		print_json(&r, &t, steps, (double)BT * CONFIG_GRADIENT_ACCUMULATION / dist_size());
	else
		print_times(&t, steps, (double)BT * CONFIG_GRADIENT_ACCUMULATION / dist_size());
	return 0;
}
