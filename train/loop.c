// SPDX-License-Identifier: MIT
/*
 * The verb train: open or resume a run, and step it to its end.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "dist.h"
#include "events.h"
#include "options.h"
#include "train.h"
#include "util.h"

enum { EXIT_SKIPS = 1 };

static void save(struct run *r)
{
	metrics_sync(r->metrics);
	metrics_mark(r->metrics, &r->st.log);
	folder_check(r);
	if (dist_leads())
		ckpt_save(r->dir, &r->m, &r->optim, &r->st);
	r->saved = r->st.step;
}

/* Recall is judged by its accuracy, everything else by its loss. */
static bool is_best(const struct ckpt_state *st, const struct eval *e)
{
	if (IS_ENABLED(CONFIG_DATA_MQAR) && st->best_step >= 0 && e->acc != st->best_acc)
		return e->acc > st->best_acc;
	return e->loss < (st->best_step < 0 ? INFINITY : st->best_loss);
}

/* On the validation split after the current step; false where a signal came. */
static bool evaluate(struct run *r)
{
	struct ckpt_state *st = &r->st;
	struct eval e;

	if (!eval_split(&r->m, SPLIT_VAL, CONFIG_EVAL_SAMPLES, &e))
		return false;
	st->eval_step = st->step;
	st->eval_loss = e.loss;
	st->eval_acc = e.acc;
	if (is_best(st, &e)) {
		st->best_step = st->step;
		st->best_loss = e.loss;
		st->best_acc = e.acc;
	}
	metrics_eval(r->metrics, st->step, "val", &e);
	log_eval(r, &e);
	return true;
}

/*
 * What the number of completed steps asks for: evaluation, checkpoint. A run that
 * a signal ended between step and evaluation makes up for it when it resumes. The step
 * has been read.
 */
static void settle(struct run *r, bool last)
{
	int64_t step = r->st.step;
	bool evaluated = false;

	if ((last || step % CONFIG_EVAL_INTERVAL == 0) && r->st.eval_step != step)
		evaluated = evaluate(r);
	last |= eval_reached(&r->st);
	if ((evaluated && (last || r->st.best_step == step)) ||
	    ((last || step % CONFIG_CHECKPOINT_INTERVAL == 0) && r->saved != step))
		save(r);
}

static int end_by_signal(struct run *r, int sig)
{
	if (r->st.step && r->saved != r->st.step)
		save(r);
	log_line("stopped  by signal %d after step %" PRId64 "; run again to go on", sig,
		 r->st.step);
	return 128 + sig;
}

static int end_by_skips(const struct run *r, const char *tensor)
{
	char *kept = r->saved < 0 ? xstrdup("no checkpoint was due yet") :
		xasprintf("checkpoint step %" PRId64 " is good", r->saved);

	warn("%s: stopped, %d updates in a row were not finite (first: %s); %s; lower "
	     "CONFIG_LEARNING_RATE or raise CONFIG_SPAM_MAX_SKIPS", r->dir, CONFIG_SPAM_MAX_SKIPS,
	     tensor, kept);
	free(kept);
	return EXIT_SKIPS;
}

/* Whether settle() has something to do after the last step. */
static bool due(const struct run *r, bool last)
{
	return last || r->st.step % CONFIG_EVAL_INTERVAL == 0 ||
	       r->st.step % CONFIG_CHECKPOINT_INTERVAL == 0;
}

/*
 * Read and log the step whose update was started last, where that is still to do. Returns:
 * NULL, or where the run must end for too many skips, what was not finite.
 */
static const char *report(struct run *r)
{
	const char *nonfinite;
	struct step_row row;

	if (!step_late(r, &row, &nonfinite))
		return NULL;
	metrics_step(r->metrics, &row);
	if (nonfinite)
		log_skip(r, &row, nonfinite);
	log_step(r, &row);
	return r->st.optim.common.skipped_row >= CONFIG_SPAM_MAX_SKIPS ? nonfinite : NULL;
}

/*
 * One step. The one before is logged while this one's micro-batches run; this one itself
 * only where what follows needs it. False where a signal or too many skips (*tensor) end
 * the run.
 */
static bool advance(struct run *r, double start, bool *late, const char **tensor)
{
	bool begun = step_begin(r);

	folder_check(r);
	*tensor = report(r);
	if (!begun || *tensor) {
		accum_drop(&r->accum);
		return false;
	}
	if ((r->st.step + 1) % CONFIG_LOG_INTERVAL == 0)
		stats_log(r, r->st.step + 1);
	step_update(r);
	*late = CONFIG_MAX_TIME && dist_agree(now() - start >= CONFIG_MAX_TIME);
	if (!due(r, *late || r->st.step >= r->st.total))
		return true;
	*tensor = report(r);
	if (!*tensor)
		settle(r, *late || r->st.step >= r->st.total);
	return !*tensor;
}

/* Nothing is left to train. */
static bool is_finished(const struct ckpt_state *st, int64_t total)
{
	return st->step >= total || eval_reached(st);
}

int train_loop(struct run *r)
{
	double start = now();
	const char *tensor = NULL;
	bool late = false, ended;

	if (r->st.step)
		settle(r, r->st.step >= r->st.total);
	while (!is_finished(&r->st, r->st.total) && !late && advance(r, start, &late, &tensor))
		;
	if (tensor)
		return end_by_skips(r, tensor);
	ended = late || is_finished(&r->st, r->st.total);
	if (stop_agreed() && !(ended && r->st.eval_step == r->st.step))
		return end_by_signal(r, stop_agreed());
	if (eval_reached(&r->st) && r->st.step < r->st.total)
		log_line("stopped  by CONFIG_STOP_ACCURACY=%g at step %" PRId64, CONFIG_STOP_ACCURACY,
			 r->st.step);
	else if (late && r->st.step < r->st.total)
		log_line("stopped  by CONFIG_MAX_TIME=%d after step %" PRId64 "; run again to go on",
			 CONFIG_MAX_TIME, r->st.step);
	return 0;
}

/*
 * Weights, moments and state of the newest whole checkpoint, or of the seed; false
 * where the run is finished.
 */
static bool resume_or_begin(struct run *r, const struct ckpt_state *want, bool allow)
{
	char *folder, *config;

	if (!ckpt_newest(r->dir, &folder, &config, &r->st)) {
		run_begin(r, want);
		return true;
	}
	ckpt_accept(folder, config, &r->m, &r->st, want, allow);
	r->st.total = want->total;
	r->st.seed = want->seed;
	memcpy(r->st.data, want->data, sizeof(want->data));
	memcpy(r->st.machine, want->machine, sizeof(want->machine));
	r->saved = r->st.step;
	if (dist_leads())
		ckpt_link_best(r->dir, r->st.best_step);
	if (is_finished(&r->st, want->total) && result_show(r->dir, MIN(r->st.step, want->total)))
		return false;
	run_place(r);
	ckpt_load(folder, &r->m, &r->optim, &r->st);
	free(folder);
	free(config);
	return true;
}

static int train(struct run *r)
{
	int status;

	if (dist_leads()) {
		result_drop(r->dir);
		r->metrics = metrics_open(r->dir, &r->st);
	}
	log_start(r, r->st.step);
	stop_install();
	status = train_loop(r);
	if (!status)
		metrics_success(r->metrics);
	metrics_close(r->metrics);
	folder_check(r);
	if (!status && dist_leads())
		result_write(r);
	return status;
}

int verb_train(int argc, char **argv)
{
	static struct run r = { .dir = "runs/" CONFIG_RUN_NAME, .label = "", .saved = -1 };
	const char *data = CONFIG_DATA_PATH;
	int64_t seed = CONFIG_SEED, steps = CONFIG_MAX_ITERS, device = 0, threads = 0;
	bool restart = false, allow = false;
	struct ckpt_state want;
	const struct opt opts[] = {
		{ "out", OPT_STRING, &r.dir, 0, 0, "folder of the run, default runs/RUN_NAME" },
		{ "seed", OPT_INT, &seed, 0, INT32_MAX, "random seed, default SEED" },
		{ "steps", OPT_INT, &steps, 1, 1e9, "steps of the schedule, default MAX_ITERS" },
		{ "data", OPT_STRING, &data, 0, 0, "data path, default DATA_PATH" },
		{ "device", OPT_INT, &device, 0, 1023, "device number" },
		{ "threads", OPT_INT, &threads, 0, 4096, "cpu threads, 0 = OMP_NUM_THREADS or all" },
		{ "restart", OPT_FLAG, &restart, 0, 0, "move the old run aside and begin anew" },
		{ "allow-config-change", OPT_FLAG, &allow, 0, 0, "resume with differing symbols" },
		{ "label", OPT_STRING, &r.label, 0, 0,
		  "what a study calls this run, for result.json and TensorBoard" },
	};

	options_parse("train", "", opts, ARRAY_SIZE(opts), argc, argv);
	dist_init();
	data_open(data);
	arch_init(device, threads);
	model_layout(&r.m);
	model_plan(&r.m, &r.plan, PHASE_TRAIN, 0);
	plan_refuse(&r.plan);
	r.bigram = data_bigram_loss();
	if (dist_leads())
		r.folder = folder_open(r.dir, restart);
	events_about(r.label, seed);
	want = run_want(seed, steps);
	if (!resume_or_begin(&r, &want, allow)) {
		log_line(eval_reached(&r.st) ? "finished %s has its accuracy by step %" PRId64
			 "; %s trains it again" : "finished %s has all its %" PRId64 " steps; %s trains it "
			 "again", r.dir, MIN(r.st.step, steps), flag_words("restart"));
		return 0;
	}
	return train(&r);
}
