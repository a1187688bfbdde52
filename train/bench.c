// SPDX-License-Identifier: MIT
/*
 * tenon bench: time training steps of this binary on random tokens: as many
 * micro-batches and sequences as the configuration says, without data and log. With
 * --decode: steps of the decode caches instead (infer/bench.c). With --forward: forwards
 * as an evaluation does them, of one micro-batch.
 *
 * Whole steps first, started as a run starts them; then a few more whose stages are
 * started one by one and waited for.
 */
#include <jansson.h>
#include <stdlib.h>

#include "arch.h"
#include "dist.h"
#include "options.h"
#include "train.h"
#include "../infer/infer.h"
#include "util.h"

enum {
	POOL = 8,		/* different batches, drawn before anything is timed */
	STAGED_STEPS = 5,	/* steps whose stages are timed, at most */
	DECODE_LENGTH = 512,	/* tokens behind which decode steps are timed */
};

static const char *const stage_names[NR_STAGES] = {
	[STAGE_FORWARD] = "forward", [STAGE_BACKWARD] = "backward", [STAGE_MERGE] = "merge",
	[STAGE_UPDATE] = "update",
};

/* Seconds of whole steps, and of each stage by step. */
struct times {
	double *whole, *stage[NR_STAGES];
	int steps, staged;
};

static struct {
	double *stage[NR_STAGES];	/* of the running step, added to */
	double from;
} lap;

/* Tokens uniform over the vocabulary: [POOL][BT] and their targets. */
static struct batch *random_batches(uint64_t seed)
{
	struct batch *x = xcalloc(POOL, sizeof(*x));
	int32_t *tok = xmalloc(sizeof(*tok) * (POOL * (size_t)BT + 1));

	for (size_t i = 0; i <= POOL * (size_t)BT; i++)
		tok[i] = rng_u64(seed, hash_name("bench"), i) % CONFIG_VOCAB_SIZE;
	for (int i = 0; i < POOL; i++)
		x[i] = (struct batch){ .b = B_MAX, .t = T_MAX, .tok = tok + (size_t)i * BT,
				       .target = tok + (size_t)i * BT + 1 };
	return x;
}

static void step(struct run *r, const struct batch *pool)
{
	struct step_row row;
	const char *nonfinite;

	arch_mark_set(&r->begun);
	for (int j = 0; j < step_micros(); j++)
		step_micro(r, j, &pool[(r->st.micro + j) % POOL]);
	step_late(r, &row, &nonfinite);
	step_update(r);
}

/* The device's seconds of each step, read one step late; before them @warmup steps. */
static void time_steps(struct run *r, const struct batch *pool, double *seconds, int warmup,
		       int steps)
{
	struct arch_mark mark[3] = { };
	struct step_row row;
	const char *nonfinite;

	for (int i = 0; i < warmup; i++)
		step(r, pool);
	arch_mark_set(&mark[0]);
	for (int i = 0; i < steps; i++) {
		step(r, pool);
		arch_mark_set(&mark[(i + 1) % 3]);
		if (i)
			seconds[i - 1] = arch_mark_seconds(&mark[(i - 1) % 3], &mark[i % 3]);
	}
	seconds[steps - 1] = arch_mark_seconds(&mark[(steps - 1) % 3], &mark[steps % 3]);
	step_late(r, &row, &nonfinite);
}

static void end_lap(enum stage s)
{
	double at;

	arch_sync();
	at = now();
	*lap.stage[s] += at - lap.from;
	lap.from = at;
}

static void time_stages(struct run *r, const struct batch *pool, struct times *t)
{
	r->stage = end_lap;
	arch_profile(true);
	for (int i = 0; i < t->staged; i++) {
		for (int s = 0; s < NR_STAGES; s++)
			lap.stage[s] = &t->stage[s][i];
		lap.from = now();
		step(r, pool);
	}
	arch_profile(false);
	r->stage = NULL;
}

static void print_times(struct times *t, double tokens)
{
	double whole = median(t->whole, t->steps), seconds[NR_STAGES], sum = 0;

	printf("%.0f tok/s, %.3f ms/step (median of %d steps of %.0f tokens)\n", tokens / whole,
	       whole * 1e3, t->steps, tokens);
	for (int s = 0; s < NR_STAGES; s++)
		sum += seconds[s] = median(t->stage[s], t->staged);
	for (int s = 0; s < NR_STAGES; s++)
		printf("  %-9s %10.3f ms  %4.1f %%\n", stage_names[s], seconds[s] * 1e3,
		       100 * seconds[s] / sum);
}

static void print_json(const struct run *r, struct times *t, double tokens)
{
	json_t *o = json_object();

	for (int s = 0; s < NR_STAGES; s++)
		json_object_set_new(o, stage_names[s], json_real(median(t->stage[s], t->staged)));
	json_object_set_new(o, "step", json_real(median(t->whole, t->steps)));
	json_object_set_new(o, "steps", json_integer(t->steps));
	json_object_set_new(o, "tokens", json_real(tokens));
	json_object_set_new(o, "elements", json_integer(r->m.param_elems));
	json_object_set_new(o, "flops", json_real(r->plan.flops_token * tokens));
	json_object_set_new(o, "memory", json_real(arch_memory_used(NULL)));
	json_object_set_new(o, "device", json_string(arch_describe()));
	json_dumpf(o, stdout, JSON_INDENT(1) | JSON_PRESERVE_ORDER);
	putchar('\n');
	json_decref(o);
}

static void train_bench(int64_t seed, int64_t warmup, int64_t steps, bool json)
{
	struct ckpt_state want = { .eval_step = -1, .best_step = -1 };
	double tokens = (double)BT * CONFIG_GRADIENT_ACCUMULATION;
	static struct run r;
	struct batch *pool;
	struct times t;

	model_layout(&r.m);
	model_plan(&r.m, &r.plan, PHASE_TRAIN, 0);
	plan_refuse(&r.plan);
	t.steps = steps;
	t.staged = MIN(steps, STAGED_STEPS);
	want.seed = seed;
	want.total = warmup + steps + t.staged;
	run_begin(&r, &want);
	pool = random_batches(seed);
	t.whole = xcalloc(steps, sizeof(double));
	for (int s = 0; s < NR_STAGES; s++)
		t.stage[s] = xcalloc(t.staged, sizeof(double));
	time_steps(&r, pool, t.whole, warmup, steps);
	time_stages(&r, pool, &t);
	if (json)
		print_json(&r, &t, tokens);
	else
		print_times(&t, tokens);
}

/* Seconds of each forward, from tokens on the device to a loss on the host. */
static void forward_bench(int64_t seed, int64_t warmup, int64_t steps, bool json)
{
	double *seconds = xcalloc(steps, sizeof(*seconds));
	struct batch *pool = random_batches(seed);
	static struct model m;
	double from;

	eval_place(&m);
	model_init_params(&m, NULL, seed);
	for (int i = -warmup; i < steps; i++) {
		model_load(&m, &pool[(i + warmup) % POOL]);
		arch_sync();
		from = now();
		model_forward(&m, false);
		model_loss(&m);
		if (i >= 0)
			seconds[i] = now() - from;
	}
	if (json)
		printf("{\"step\": %.9g, \"steps\": %d, \"tokens\": %d}\n", median(seconds, steps),
		       (int)steps, (int)BT);
	else
		printf("%.0f tok/s, %.3f ms a forward (median of %d of %d tokens)\n",
		       BT / median(seconds, steps), median(seconds, steps) * 1e3, (int)steps, (int)BT);
}

int verb_bench(int argc, char **argv)
{
	int64_t steps = 10, warmup = 2, seed = CONFIG_SEED, device = 0, threads = 0;
	int64_t sequences = 0, length = 0;
	bool json = false, decode = false, forward = false;
	const struct opt opts[] = {
		{ "steps", OPT_INT, &steps, 1, 1e6, "steps that are timed" },
		{ "warmup", OPT_INT, &warmup, 0, 1e6, "steps before them" },
		{ "seed", OPT_INT, &seed, 0, INT32_MAX, "of weights and tokens" },
		{ "json", OPT_FLAG, &json, 0, 0, "seconds by stage, for scripts" },
		{ "decode", OPT_FLAG, &decode, 0, 0, "time decode steps, not training steps" },
		{ "forward", OPT_FLAG, &forward, 0, 0, "time forwards alone" },
		{ "batch", OPT_INT, &sequences, 1, B_MAX, "of --decode: sequences, default 1" },
		{ "length", OPT_INT, &length, 1, MAX(T_MAX - 1, 1),
		  "of --decode: tokens in each cache, default 512 or what fits" },
		{ "device", OPT_INT, &device, 0, 1023, "device number" },
		{ "threads", OPT_INT, &threads, 0, 4096, "cpu threads, 0 = OMP_NUM_THREADS or all" },
	};

	options_parse("bench", "", opts, ARRAY_SIZE(opts), argc, argv);
	if (!decode && (sequences || length))
		die("bench: --batch and --length are of decode steps; add --decode, or leave them away");
	if (decode && forward)
		die("bench: --decode and --forward are two things to time; leave one away");
	if (decode && T_MAX == 1)
		die("bench: a model of one position has no step behind a token; raise "
		    "CONFIG_BLOCK_SIZE");
	dist_init();
	arch_init(device, threads);
	if (decode)
		decode_bench(&(struct decode_bench){
			.sequences = MAX(sequences, 1), .steps = steps, .warmup = warmup,
			.length = length ? length : MIN(DECODE_LENGTH, T_MAX - 1),
			.seed = seed, .json = json });
	else if (forward)
		forward_bench(seed, warmup, steps, json);
	else
		train_bench(seed, warmup, steps, json);
	return 0;
}
