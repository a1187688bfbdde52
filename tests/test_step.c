// SPDX-License-Identifier: MIT
/*
 * Steps of the real model: leaves and their sum, losses by micro-batch, a step read
 * late, the guard against what is not finite, checkpoints.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "../ckpt/ckpt.h"
#include "../train/train.h"
#include "scratch.h"

static struct run run = { .dir = scratch_dir, .saved = -1 };

/* Its elements that backward reported, and how often the one reported most. */
struct reported {
	unsigned char *times;
	size_t elems;
	int most;
};

static void report_range(void *ctx, size_t offset, size_t n)
{
	struct reported *p = ctx;

	for (size_t i = offset; i < offset + n; i++) {
		p->times[i]++;
		p->most = MAX(p->most, p->times[i]);
	}
	p->elems += n;
}

/* Gradient of micro-batch i by itself. */
static void leaf_apart(int i, grad_t *leaf)
{
	struct model *m = &run.m;

	data_train_batch(5, i, B_MAX, T_MAX, run.tok, run.target);
	m->dw = leaf;
	model_load(m, &(struct batch){ B_MAX, T_MAX, run.tok, run.target });
	model_forward(m, true);
	model_backward(m, NULL, NULL);
	arch_sync();
}

static void merge_all(const struct accum *a, const struct accum_merge *merges, int nr)
{
	for (int i = 0; i < nr; i++)
		accum_merge(a, merges[i], 0, a->elems);
}

static void accum_of_eight_equals_eight_apart(void)
{
	size_t n = run.m.param_elems, size = n * sizeof(grad_t), bytes = ROUND_UP(12 * size, 256);
	grad_t *mem = arch_alloc(bytes), *leaf = mem + 4 * n;
	struct accum_merge merges[ACCUM_MAX_SLOTS];
	struct accum a;
	grad_t *got = xmalloc(size), *want = xmalloc(size);
	int sum;

	accum_place(&a, accum_slots(8), n, mem);
	for (int i = 0; i < 8; i++) {
		int at = accum_leaf(&a);

		leaf_apart(i, a.buf[at]);
		merge_all(&a, merges, accum_push(&a, at, merges));
	}
	merge_all(&a, merges, accum_fold(&a, merges, &sum));
	arch_get(got, a.buf[sum], size);
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

/* What backward reports are ranges of the whole leaf, each element once. */
static void backward_reports_every_element_once(void)
{
	size_t n = run.m.param_elems;
	struct reported p = { .times = xcalloc(n, 1) };

	data_train_batch(5, 0, B_MAX, T_MAX, run.tok, run.target);
	run.m.dw = run.accum.buf[0];
	model_load(&run.m, &(struct batch){ B_MAX, T_MAX, run.tok, run.target });
	model_forward(&run.m, true);
	model_backward(&run.m, report_range, &p);
	ok(p.elems == n && p.most == 1, "backward_reports_every_element_once");
	free(p.times);
}

/* A step, read at once. */
static bool step_now(struct step_row *row, const char **name)
{
	if (!step_begin(&run))
		return false;
	step_update(&run);
	return step_late(&run, row, name);
}

/* Loss of micro-batch @i at the weights that are there. */
static double loss_apart(int64_t i)
{
	data_train_batch(run.st.seed, i, B_MAX, T_MAX, run.tok, run.target);
	model_load(&run.m, &(struct batch){ B_MAX, T_MAX, run.tok, run.target });
	model_forward(&run.m, false);
	return model_loss(&run.m);
}

/* A step's loss is the tree mean of its micro-batches' at the weights before it. */
static void step_loss_is_of_its_micro_batches(void)
{
	enum { N = CONFIG_GRADIENT_ACCUMULATION };
	size_t bytes = ROUND_UP((N + 1) * sizeof(double), TENSOR_ALIGN);
	double loss[N], *mem = arch_alloc(bytes), mean;
	struct step_row row;
	const char *name;

	for (int i = 0; i < N; i++)
		loss[i] = loss_apart(run.st.micro + i);
	arch_put(mem, loss, sizeof(loss));
	k_loss_tree(mem + N, mem, N);
	arch_get(&mean, mem + N, sizeof(mean));
	step_now(&row, &name);
	ok(row.loss == mean, "step_loss_is_of_its_micro_batches: %.17g, %.17g", row.loss, mean);
	arch_free(mem, bytes);
}

/* A step is read when the next one's micro-batches run, with the same outcome. */
static void late_state_is_that_of_its_step(void)
{
	struct step_row row = { .step = -1 }, none;
	struct adam_state *st = (struct adam_state *)&run.st.optim;
	int64_t before = run.st.step, count;
	const char *name = "";

	step_begin(&run);
	step_update(&run);
	count = st->common.applied;
	ok(run.st.step == before + 1 && run.late.pending, "late_step_counts_before_it_is_read");
	step_begin(&run);
	ok(step_late(&run, &row, &name) && row.step == before + 1 && !name &&
	   isfinite(row.loss) && row.grad_norm == st->common.norm &&
	   st->common.applied == count + 1, "late_state_is_that_of_its_step");
	ok(row.ms > 0 && fabs(row.ms * row.tok_s / (1e3 * BT * CONFIG_GRADIENT_ACCUMULATION) - 1) < 1e-9,
	   "a_step_has_a_time_and_its_speed");
	ok(!step_late(&run, &none, &name), "late_state_is_read_once");
	step_update(&run);
	step_late(&run, &row, &name);
	ok(row.step == before + 2 && st->common.applied == count + 2, "late_state_of_the_next");
}

/* Target -1: the mean over the others. */
static void unscored_targets_do_not_count(void)
{
	double all, even, odd;

	all = loss_apart(3);
	for (int i = 0; i < BT; i += 2)
		run.target[i] = -1;
	model_load(&run.m, &(struct batch){ B_MAX, T_MAX, run.tok, run.target });
	model_forward(&run.m, false);
	odd = model_loss(&run.m);
	data_train_batch(run.st.seed, 3, B_MAX, T_MAX, run.tok, run.target);
	for (int i = 1; i < BT; i += 2)
		run.target[i] = -1;
	model_load(&run.m, &(struct batch){ B_MAX, T_MAX, run.tok, run.target });
	model_forward(&run.m, false);
	even = model_loss(&run.m);
	/* rows of losses are rounded to acc_t, sums are in double */
	ok(odd != even && fabs((odd + even) / 2 - all) < 1e-6 * all,
	   "unscored_targets_do_not_count: %g and %g, all %g", odd, even, all);
}

static void evaluation_is_the_mean_of_its_batches(void)
{
	enum { BATCHES = 3 };
	struct eval e = {};
	double mean = 0;
	bool whole = eval_split(&run.m, SPLIT_VAL, BATCHES, &e);

	for (int i = 0; i < BATCHES; i++) {
		data_eval_batch(SPLIT_VAL, i, BATCHES, B_MAX, T_MAX, run.tok, run.target);
		model_load(&run.m, &(struct batch){ B_MAX, T_MAX, run.tok, run.target });
		model_forward(&run.m, false);
		mean += model_loss(&run.m) / BATCHES;
	}
	ok(whole && fabs(e.loss - mean) <= 1e-12 * mean,
	   "evaluation_is_the_mean_of_its_batches (%g)", e.loss);
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
	struct adam_state *adam = (struct adam_state *)&was.optim;
	char *folder, *config;

	arch_get(copy, run.m.w, size);
	was.eval_step = was.step;
	was.eval_loss = 1.0 / 3;
	was.best_loss = NAN;
	adam->norms[3] = 0.1;
	adam->z = -INFINITY;
	adam->common.norm = 5e-324;
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

/* A weight that is not finite: updates are skipped, then the run stops. */
static void nonfinite_never_enters_the_weights(void)
{
	size_t n = run.m.param_elems, size = n * sizeof(param_t), moments = n * sizeof(grad_t);
	param_t *copy = xmalloc(size);
	grad_t *m = xmalloc(moments), *after = xmalloc(moments);
	const struct param_entry *e = model_find(&run.m, "ln_f.weight");
	acc_t bad = NAN;		/* norms are not rounded */
	const char *name;
	struct step_row row;

	arch_put(run.m.w + e->offset, &bad, sizeof(bad));
	arch_get(copy, run.m.w, size);
	arch_get(m, run.optim.buf[0], moments);
	step_now(&row, &name);
	ok(run.st.optim.common.skip && name && row.skipped == 1, "nonfinite_step_is_skipped (%s)",
	   name ? name : "-");
	arch_get(after, run.optim.buf[0], moments);
	ok(same_weights(copy) && !memcmp(m, after, moments), "nonfinite_never_enters_the_weights");
	run.metrics = metrics_open(scratch_dir, &run.st);
	diag("what follows on stderr is meant to");
	ok(train_loop(&run) == 1 && run.st.optim.common.skipped_row == CONFIG_SPAM_MAX_SKIPS,
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

int main(void)
{
	struct ckpt_state want;
	struct step_row row;
	const char *name;
	int64_t step;

	scratch_open();
	arch_init(0, 1);	/* other numbers of threads: tests/train.t */
	data_open(CONFIG_DATA_PATH);
	model_layout(&run.m);
	model_plan(&run.m, &run.plan, PHASE_TRAIN, 0);
	want = run_want(5, 1000000);
	run_begin(&run, &want);
	accum_of_eight_equals_eight_apart();
	for (int i = 0; i < 3; i++) {
		bool done = step_now(&row, &name);

		ok(done && !name && isfinite(row.loss), "step %d: loss %.4f", i + 1, row.loss);
	}
	ok(row.step == 3 && row.tokens == 3L * CONFIG_GRADIENT_ACCUMULATION * BT,
	   "step_counts_tokens");
	backward_reports_every_element_once();
	step_loss_is_of_its_micro_batches();
	late_state_is_that_of_its_step();
	unscored_targets_do_not_count();
	evaluation_is_the_mean_of_its_batches();
	step = run.st.step;
	checkpoint_round_trip();
	other_data_is_refused(step);
	nonfinite_never_enters_the_weights();
	if (CONFIG_CHECKPOINT_INTERVAL > CONFIG_SPAM_MAX_SKIPS + 6 &&
	    CONFIG_EVAL_INTERVAL > CONFIG_SPAM_MAX_SKIPS + 6)
		last_checkpoint_is_good_after_the_stop(step);
	scratch_close();
	return tap_done();
}
