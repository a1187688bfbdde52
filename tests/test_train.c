// SPDX-License-Identifier: MIT
/*
 * Training, piece by piece: schedules, the accumulation tree, plans that do not fit,
 * the guard against what is not finite, checkpoints and their state, and which
 * configurations may go on with one.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arch.h"
#include "../train/train.h"
#include "scratch.h"

/* ---- schedule -------------------------------------------------------------- */

/* 8 roundings of values up to the highest rate */
#define CLOSE(a, b) (fabs((a) - (b)) <= 8 * 0x1p-53 * s.lr)

static void schedule_follows_formulas(void)
{
	struct schedule s = { SCHEDULE_COSINE, 6e-4, 6e-5, 10, 0 };
	const int64_t n = 101;
	bool warm = true, cosine = true, constant = true, wsd = true;

	for (int64_t i = 0; i < n; i++) {
		double x = s.min + 0.5 * (s.lr - s.min) * (1 + cos(M_PI * (i - 10) / 90.0));

		s.kind = SCHEDULE_COSINE;
		if (i < 10)
			warm &= CLOSE(schedule_at(&s, i, n), 6e-4 * (i + 1) / 10);
		else
			cosine &= CLOSE(schedule_at(&s, i, n), x);
		s.kind = SCHEDULE_CONSTANT;
		constant &= i < 10 || schedule_at(&s, i, n) == 6e-4;
		s.kind = SCHEDULE_WSD;
		s.decay = 25;
		x = i < n - 25 ? s.lr : s.lr - (s.lr - s.min) * (i - n + 26) / 25.0;
		wsd &= i < 10 || CLOSE(schedule_at(&s, i, n), x);
	}
	ok(warm, "schedule_warmup_is_linear");
	ok(cosine, "schedule_cosine_follows_its_formula");
	ok(constant, "schedule_constant_is_constant");
	ok(wsd, "schedule_wsd_follows_its_formula");
}

static void schedule_corners(void)
{
	struct schedule s = { SCHEDULE_COSINE, 1.0, 0.1, 10, 0 };

	ok(schedule_at(&s, 10, 11) == 1.0, "schedule_cosine_without_room_is_lr");
	ok(CLOSE(schedule_at(&s, 11, 12), 0.1), "schedule_cosine_ends_at_min");
	ok(schedule_at(&s, 4, 5) == 0.5, "schedule_warmup_longer_than_the_run");
	s.warmup = 0;
	ok(schedule_at(&s, 0, 1) == 1.0, "schedule_of_one_step_is_lr");
	ok(schedule_at(&s, 0, 100) == 1.0, "schedule_without_warmup_begins_at_lr");
	s.kind = SCHEDULE_WSD;
	ok(schedule_at(&s, 79, 100) == 1.0 && schedule_at(&s, 80, 100) < 1.0 &&
	   CLOSE(schedule_at(&s, 99, 100), 0.1), "schedule_wsd_decays_over_a_fifth");
	ok(schedule_at(&s, 3, 4) == 1.0, "schedule_wsd_of_four_steps_never_decays");
	s.decay = 100;
	ok(schedule_at(&s, 0, 100) < 1.0, "schedule_wsd_may_decay_from_the_start");
}

/* ---- accumulation ---------------------------------------------------------- */

enum { ELEMS = 192 };

static void leaf_values(grad_t *g, int i)
{
	for (int k = 0; k < ELEMS; k++)
		g[k] = (grad_t)rng_normal(1, i, k);
}

/*
 * The sum of leaves [from, from + n), n = any: the largest power of two of them
 * first (older), the rest folded by itself (newer).
 */
static void fold_apart(grad_t *sum, int from, int n)
{
	grad_t rest[ELEMS];
	int half = 1;

	if (n == 1) {
		leaf_values(sum, from);
		return;
	}
	while (2 * half < n)
		half *= 2;
	fold_apart(sum, from, half);
	fold_apart(rest, from + half, n - half);
	for (int k = 0; k < ELEMS; k++)
		sum[k] += rest[k];
}

static void accum_is_the_fixed_tree(void)
{
	grad_t *mem = arch_alloc(ROUND_UP(6 * ELEMS * sizeof(*mem), TENSOR_ALIGN));
	grad_t want[ELEMS], got[ELEMS], leaf[ELEMS];
	struct accum a;
	int wrong = 0;

	for (int n = 1; n <= 33; n++) {
		accum_place(&a, accum_slots(n), ELEMS, mem);
		for (int i = 0; i < n; i++) {
			grad_t *at = accum_leaf(&a);

			leaf_values(leaf, i);
			arch_put(at, leaf, sizeof(leaf));
			accum_push(&a, at);
		}
		arch_get(got, accum_fold(&a), sizeof(got));
		fold_apart(want, 0, n);
		if (memcmp(got, want, sizeof(want)))
			wrong = n;
	}
	ok(!wrong, "accum_is_the_fixed_tree (1 to 33 leaves)");
	ok(accum_slots(1) == 1 && accum_slots(2) == 2 && accum_slots(7) == 3 &&
	   accum_slots(8) == 4, "accum_slots_is_log2_plus_1");
	leaf_values(leaf, 0);
	arch_put(accum_leaf(&a), leaf, sizeof(leaf));
	accum_push(&a, accum_leaf(&a));
	accum_drop(&a);
	ok(accum_leaf(&a) == mem, "accum_drop_frees_every_buffer");
	arch_free(mem, ROUND_UP(6 * ELEMS * sizeof(*mem), TENSOR_ALIGN));
}

/* ---- the real model --------------------------------------------------------- */

static struct run run = { .dir = scratch_dir, .saved = -1 };

/* Gradient of micro-batch i by itself. */
static void leaf_apart(int i, grad_t *leaf)
{
	struct model *m = &run.m;

	data_train_batch(5, i, B_MAX, T_MAX, run.tok);
	m->dw = leaf;
	model_forward(m, run.tok, B_MAX, T_MAX, true);
	model_backward(m, B_MAX, T_MAX);
	arch_sync();
}

static void accum_of_eight_equals_eight_apart(void)
{
	size_t n = run.m.param_elems, size = n * sizeof(grad_t), bytes = ROUND_UP(12 * size, 256);
	grad_t *mem = arch_alloc(bytes), *sum, *leaf = mem + 4 * n;
	struct accum a;
	grad_t *got = xmalloc(size), *want = xmalloc(size);

	accum_place(&a, accum_slots(8), n, mem);
	for (int i = 0; i < 8; i++) {
		sum = accum_leaf(&a);
		leaf_apart(i, sum);
		accum_push(&a, sum);
	}
	arch_get(got, accum_fold(&a), size);
	for (int i = 7; i >= 0; i--)	/* another order: a leaf depends on its number alone */
		leaf_apart(i, leaf + i * n);
	for (int gap = 1; gap < 8; gap *= 2)
		for (int i = 0; i < 8; i += 2 * gap)
			k_sum_grad(leaf + i * n, leaf + (i + gap) * n, n);
	arch_get(want, leaf, size);
	ok(!memcmp(got, want, size), "accum_of_eight_equals_eight_apart");
	free(got);
	free(want);
	arch_free(mem, bytes);
}

static bool same_weights(const param_t *copy)
{
	size_t size = run.m.param_elems * sizeof(*copy);
	param_t *now = xmalloc(size);
	bool same;

	arch_get(now, run.m.w, size);
	same = !memcmp(now, copy, size);
	free(now);
	return same;
}

static void checkpoint_round_trip(void)
{
	size_t size = run.m.param_elems * sizeof(param_t);
	param_t *copy = xmalloc(size);
	struct ckpt_state was = run.st, st;
	char *folder, *config;

	arch_get(copy, run.m.w, size);
	was.eval_step = was.step;
	was.eval_loss = 1.0 / 3;
	was.best_loss = NAN;
	was.optim.norms[3] = 0.1;
	was.optim.z = -INFINITY;
	was.optim.norm = 5e-324;
	ckpt_save(scratch_dir, &run.m, &run.optim, &was);
	ok(ckpt_newest(scratch_dir, &folder, &config, &st), "checkpoint_is_found");
	ok(!memcmp(&st, &was, sizeof(st)) ||
	   (isnan(st.best_loss) && (st.best_loss = was.best_loss, !memcmp(&st, &was, sizeof(st)))),
	   "checkpoint_state_comes_back_bit_for_bit");
	ok(!strcmp(config, config_text()), "checkpoint_keeps_the_configuration");
	arch_zero(run.m.w, size);
	ckpt_load(folder, &run.m, &run.optim, &st);
	ok(same_weights(copy), "checkpoint_weights_come_back_bit_for_bit");
	optim_put(&run.optim, &run.st.optim);
	free(folder);
	free(config);
	free(copy);
}

/* The rows of step 2 and its evaluation, opened again before or after that was kept. */
static size_t rows_again(bool evaluated)
{
	struct metrics *t = metrics_open(scratch("rows"), 2, evaluated);
	uint8_t *p;
	size_t n;

	metrics_close(t);
	p = file_read(scratch("rows/metrics.jsonl"), &n);
	free(p);
	return n;
}

/* A run that stopped between a step and its evaluation makes up for it, once. */
static void evaluation_is_logged_once(void)
{
	struct step_row row = { .step = 2 };
	struct metrics *t;
	size_t before, after;

	dir_make(scratch("rows"));
	t = metrics_open(scratch("rows"), 0, false);
	metrics_step(t, &row);
	metrics_close(t);
	before = rows_again(false);
	t = metrics_open(scratch("rows"), 2, false);
	metrics_eval(t, 2, "val", 1.5);
	metrics_close(t);
	after = rows_again(true);
	ok(before && after > before && rows_again(false) == before, "evaluation_is_logged_once");
}

/* A weight that is not finite: updates are skipped, then the run stops. */
static void nonfinite_never_enters_the_weights(void)
{
	size_t n = run.m.param_elems, size = n * sizeof(param_t);
	param_t *copy = xmalloc(size), bad = NAN;
	grad_t *m = xmalloc(size), *after = xmalloc(size);
	const struct param_entry *e = model_find(&run.m, "ln_f.bias");
	const char *name;
	struct step_row row;

	arch_put(run.m.w + e->offset, &bad, sizeof(bad));
	arch_get(copy, run.m.w, size);
	arch_get(m, run.optim.m, size);
	step_run(&run, &row, &name);
	ok(run.st.optim.skip && name && row.skipped == 1, "nonfinite_step_is_skipped (%s)",
	   name ? name : "-");
	arch_get(after, run.optim.m, size);
	ok(same_weights(copy) && !memcmp(m, after, size), "nonfinite_never_enters_the_weights");
	run.metrics = metrics_open(scratch_dir, run.st.step - 1, false);
	diag("what follows on stderr is meant to");
	ok(train_loop(&run) == 1 && run.st.optim.skipped_row == CONFIG_SPAM_MAX_SKIPS,
	   "nonfinite_stops_after_max_skips");
	metrics_close(run.metrics);
	free(copy);
	free(m);
	free(after);
}

static void accept_other_data(const void *folder)
{
	struct ckpt_state is = run.st;

	is.data[0] ^= 1;
	ckpt_accept(folder, config_text(), &run.m, &run.st, &is, false);
}

static void other_data_is_refused(int64_t step)
{
	char *folder = ckpt_folder(scratch_dir, step);

	ok(dies(accept_other_data, folder, "the data (sha256 was "), "resume_refuses_other_data");
	free(folder);
}

static void last_checkpoint_is_good_after_the_stop(int64_t step)
{
	struct ckpt_state st;
	char *folder, *config;

	ok(ckpt_newest(scratch_dir, &folder, &config, &st) && st.step == step,
	   "last_checkpoint_is_good_after_the_stop");
	free(folder);
	free(config);
}

static void model_tests(void)
{
	struct ckpt_state want;
	struct step_row row;
	const char *name;
	int64_t step;

	data_open(CONFIG_DATA_PATH);
	model_layout(&run.m);
	model_plan(&run.m, &run.plan, PHASE_TRAIN, 0);
	want = run_want(5, 1000000);
	run_begin(&run, &want);
	accum_of_eight_equals_eight_apart();
	for (int i = 0; i < 3; i++) {
		bool done = step_run(&run, &row, &name);

		ok(done && !name && isfinite(row.loss), "step %d: loss %.4f", i + 1, row.loss);
	}
	ok(row.step == 3 && row.tokens == 3L * CONFIG_GRADIENT_ACCUMULATION * BT,
	   "step_counts_tokens");
	step = run.st.step;
	checkpoint_round_trip();
	other_data_is_refused(step);
	evaluation_is_logged_once();
	nonfinite_never_enters_the_weights();
	if (CONFIG_CHECKPOINT_INTERVAL > CONFIG_SPAM_MAX_SKIPS + 3 &&
	    CONFIG_EVAL_INTERVAL > CONFIG_SPAM_MAX_SKIPS + 3)
		last_checkpoint_is_good_after_the_stop(step);
}

/* ---- plans that do not fit --------------------------------------------------- */

static void refuse(const void *plan)
{
	plan_refuse(plan);
}

static void plan_that_does_not_fit_names_symbols(void)
{
	const size_t much = (size_t)1 << 60;
	const struct plan act = { .bytes_act = much, .bytes_arena = much };
	const struct plan state = { .bytes_grads = much, .bytes_arena = much };
	const struct plan fits = { .bytes_arena = 4096 };

	ok(dies(refuse, &act, "lower CONFIG_BATCH_SIZE ("), "plan_of_activations_names_symbols");
	ok(dies(refuse, &state, "lower CONFIG_N_LAYER ("), "plan_of_weights_names_symbols");
	plan_refuse(&fits);
}

/* ---- compatibility of configurations ---------------------------------------- */

static bool diff_is(const char *was, const char *is, enum compat use, const char *want)
{
	char *diff = compat_diff(was, is, use);
	bool same = want ? diff && !strcmp(diff, want) : !diff;

	if (!same)
		diag("got %s", diff ? diff : "no difference");
	free(diff);
	return same;
}

static void compat_sorts_symbols(void)
{
	const char *a = "# Tenon\nCONFIG_N_EMBD=64\n# CONFIG_X is not set\nCONFIG_LOG_INTERVAL=10\n"
			"CONFIG_LEARNING_RATE=\"6e-4\"\n";
	const char *b = "CONFIG_LEARNING_RATE=\"1e-3\"\nCONFIG_LOG_INTERVAL=1\nCONFIG_N_EMBD=32\n"
			"CONFIG_GENERATION_TOP_K=3\n";

	ok(diff_is(a, a, COMPAT_RESUME, NULL), "compat_same_text_has_no_difference");
	ok(diff_is(a, b, COMPAT_RESUME,
		   "LEARNING_RATE (was 6e-4, is 1e-3), N_EMBD (was 64, is 32)"),
	   "compat_resume_lists_what_matters");
	ok(diff_is("CONFIG_GRAD_CLIP=1.0\n", "CONFIG_GRAD_CLIP=\"1.0\"\n", COMPAT_RESUME, NULL),
	   "compat_quotes_of_a_real_do_not_matter");
	ok(diff_is(a, b, COMPAT_WEIGHTS, "N_EMBD (was 64, is 32)"),
	   "compat_weights_ignores_training");
	ok(diff_is("CONFIG_NEW=y\n", "", COMPAT_WEIGHTS, "NEW (was y, is n)"),
	   "compat_unlisted_symbol_matters");
}

int main(void)
{
	scratch_open();
	arch_init(0, 1);	/* other numbers of threads: tests/train.t */
	schedule_follows_formulas();
	schedule_corners();
	accum_is_the_fixed_tree();
	compat_sorts_symbols();
	plan_that_does_not_fit_names_symbols();
	model_tests();
	scratch_close();
	return tap_done();
}
