/* SPDX-License-Identifier: MIT */
/*
 * Inside train/: the pieces of a run, and what its tests need of them.
 */
#ifndef TENON_TRAIN_H
#define TENON_TRAIN_H

#include "checkpoint.h"
#include "data.h"

/* ---- schedule.c ----------------------------------------------------------- */

enum schedule_kind { SCHEDULE_CONSTANT, SCHEDULE_COSINE, SCHEDULE_WSD };

/**
 * struct schedule - a learning rate by step
 * @kind: course after the warmup
 * @lr: highest rate
 * @min: rate of the last step (cosine, wsd)
 * @warmup: steps of the linear rise
 * @decay: steps of the linear fall (wsd), 0 = a fifth of all
 */
struct schedule {
	enum schedule_kind kind;
	double lr, min;
	int64_t warmup, decay;
};

/** schedule_at() - rate of step @i of @n, 0-based */
double schedule_at(const struct schedule *s, int64_t i, int64_t n);

/* ---- optim.c -------------------------------------------------------------- */

/** optim_apply() - norm, decision and update, common to the optimizers */
void optim_apply(struct optim *o, struct model *m, grad_t *grad, double lr, double loss,
		 const struct optim_hyper *hp);

/** optim_put() - the scalars of a checkpoint into the optimizer */
void optim_put(struct optim *o, const struct optim_state *st);

/* ---- manifest.c ----------------------------------------------------------- */

enum { CKPT_FILES = 3 };	/* model, optim, state */

/**
 * struct ckpt_file - one file of a checkpoint
 * @name: in the folder
 * @bytes: its size
 * @sha256: hex digest
 */
struct ckpt_file {
	const char *name;
	uint64_t bytes;
	char sha256[65];
};

/** manifest_write() - the last file of a checkpoint; 0 or -errno */
int manifest_write(const char *folder, const struct ckpt_file files[CKPT_FILES], int64_t step);

/**
 * manifest_check() - whether a checkpoint is what was written
 * @folder: step folder
 * @config: gets the malloc'ed configuration text it was written under
 *
 * Reads every byte of every file. Returns: NULL, or a malloc'ed
 * "FILE: what is wrong".
 */
char *manifest_check(const char *folder, char **config);

/* ---- state.c -------------------------------------------------------------- */

/** state_write() - state.json of a checkpoint; 0 or -errno */
int state_write(const char *folder, const struct ckpt_state *st, struct ckpt_file *f);

/** state_read() - NULL, or a malloc'ed "FILE: what is wrong" */
char *state_read(const char *folder, struct ckpt_state *st);

/* ---- tensors.c ------------------------------------------------------------ */

/**
 * struct tensor_set - one flat device buffer of a file
 * @prefix: before every tensor's name
 * @buf: [param_elems], param_t and grad_t being of one type
 */
struct tensor_set {
	const char *prefix;
	void *buf;
};

/** tensors_write() - every tensor of @nr buffers, streamed; 0 or -errno */
int tensors_write(const char *folder, const struct model *m, const struct tensor_set *sets, int nr,
		  struct ckpt_file *f);

/**
 * tensors_match() - whether a file has exactly the tensors of this binary
 *
 * Returns: NULL, or a malloc'ed "FILE: what is wrong", naming the tensor.
 */
char *tensors_match(const char *folder, const char *name, const struct model *m,
		    const struct tensor_set *sets, int nr);

/** tensors_read() - as tensors_match(), and the values into the buffers */
char *tensors_read(const char *folder, const char *name, const struct model *m,
		   const struct tensor_set *sets, int nr);

/** tensors_sha256() - digest of all values of m->w, in the order of the file */
void tensors_sha256(const struct model *m, char hex[65]);

/* ---- compat.c ------------------------------------------------------------- */

enum compat { COMPAT_RESUME, COMPAT_WEIGHTS };

/**
 * compat_diff() - symbols in which two configurations differ
 * @was: configuration text of the checkpoint
 * @is: of this binary
 * @use: what for; the symbols that are free for that are left out
 *
 * Returns: malloc'ed "X (was 1, is 2), ...", or NULL where nothing differs.
 */
char *compat_diff(const char *was, const char *is, enum compat use);

/* ---- checkpoint.c --------------------------------------------------------- */

/** ckpt_folder() - malloc'ed DIR/step-000200 */
char *ckpt_folder(const char *dir, int64_t step);

/**
 * ckpt_list() - steps of the checkpoints in a run folder, newest first
 * @steps: gets a malloc'ed array
 *
 * Returns: its length.
 */
int ckpt_list(const char *dir, int64_t **steps);

/** ckpt_recover() - undo or finish what a killed run left half-done in @dir */
void ckpt_recover(const char *dir);

/**
 * ckpt_save() - write, commit, then prune older ones
 *
 * Dies where the folder cannot be written or the disk is full; the previous
 * checkpoints are intact then.
 */
void ckpt_save(const char *dir, const struct model *m, const struct optim *o,
	       const struct ckpt_state *st);

/* ---- restore.c ------------------------------------------------------------ */

/**
 * ckpt_newest() - the newest checkpoint of a run that is whole
 * @folder: gets its malloc'ed path
 * @config: gets the malloc'ed configuration text it was written under
 * @st: gets its state
 *
 * Damaged ones are named on stderr. Returns: false where there is no checkpoint;
 * dies where there are only damaged ones.
 */
bool ckpt_newest(const char *dir, char **folder, char **config, struct ckpt_state *st);

/**
 * ckpt_accept() - refuse to resume what another configuration began
 * @was: state of the checkpoint
 * @is: total, seed and data of this run
 * @allow: symbols that leave the tensors alone may differ
 */
void ckpt_accept(const char *folder, const char *config, const struct model *m,
		 const struct ckpt_state *was, const struct ckpt_state *is, bool allow);

/** ckpt_load() - weights and moments; dies where they cannot be read */
void ckpt_load(const char *folder, struct model *m, struct optim *o, const struct ckpt_state *st);

/* ---- metrics.c ------------------------------------------------------------ */

/**
 * struct step_row - what is logged of a step
 * @step: steps completed with it
 * @tokens: tokens seen so far
 * @loss: mean loss of its micro-batches
 * @lr: of the schedule
 * @grad_norm: global norm before the clip
 * @tok_s: tokens per second
 * @ms: wall time
 * @skipped: updates skipped so far
 */
struct step_row {
	int64_t step, tokens;
	double loss, lr, grad_norm, tok_s, ms;
	int64_t skipped;
};

struct metrics;

/**
 * metrics_open() - cut DIR/metrics.jsonl and the event file back to @step, and append
 * @evaluated: the evaluation of @step stays; without it, it is still to come
 */
struct metrics *metrics_open(const char *dir, int64_t step, bool evaluated);
/** metrics_step() - the row of one step */
void metrics_step(struct metrics *t, const struct step_row *r);
/** metrics_eval() - the row of one evaluation */
void metrics_eval(struct metrics *t, int64_t step, const char *split, double loss);
/** metrics_stats() - the row of statistics of one sub-layer */
void metrics_stats(struct metrics *t, int64_t step, int layer, const char *mixer,
		   const struct metric *values, int nr);
/** metrics_sync() - what was logged is on the disk */
void metrics_sync(struct metrics *t);
/** metrics_close() - finish the files */
void metrics_close(struct metrics *t);

/* ---- run.c, step.c, stats.c, eval.c, log.c, result.c, stop.c ------------------------ */

/**
 * struct run - one training run
 * @m: model, placed in the arena
 * @plan: its memory
 * @accum: gradient buffers
 * @optim: the optimizer
 * @st: where the run is; st.optim is the state after the last step
 * @dir: its folder
 * @tok: host [B_MAX][T_MAX + 1]
 * @metrics: open log
 * @saved: step of the last checkpoint, -1 none
 * @rss: peak resident set before the arena was taken
 * @bigram: data_bigram_loss(), read before anything is written: a small vocabulary's
 *	whole data is looked at once, and a bad token ends the run before it begins
 */
struct run {
	struct model m;
	struct plan plan;
	struct accum accum;
	struct optim optim;
	struct ckpt_state st;
	const char *dir;
	int32_t *tok;
	struct metrics *metrics;
	int64_t saved;
	size_t rss;
	double bigram;
};

/** run_place() - the arena, planned to the byte, and every buffer in it */
void run_place(struct run *r);

/** run_want() - the state of a run that has not begun; after data_open() */
struct ckpt_state run_want(int64_t seed, int64_t total);

/** run_begin() - place, and weights from the seed of @want */
void run_begin(struct run *r, const struct ckpt_state *want);

/**
 * step_run() - one step: micro-batches, fold, update
 * @row: gets everything but times
 * @nonfinite: gets the name of what was not finite, NULL if nothing
 *
 * Returns: false where a signal came: nothing was changed then.
 */
bool step_run(struct run *r, struct step_row *row, const char **nonfinite);

/** stats_log() - rows of the mixers' statistics for @step, RA_MLA_LOG_METRICS */
#if IS_ENABLED(CONFIG_RA_MLA_LOG_METRICS)
void stats_log(const struct run *r, int64_t step);
#else
static inline void stats_log(const struct run *r, int64_t step)
{
	(void)r;
	(void)step;
}
#endif

/** train_loop() - steps up to the end, a signal or the time limit; the exit status */
int train_loop(struct run *r);

/** eval_loss() - mean loss over @count fixed batches of a split; false where a signal came */
bool eval_loss(struct model *m, enum split s, int count, int32_t *tok, double *loss);

/** log_start() - the first lines of a run */
void log_start(const struct run *r, int64_t from);
/** log_step() - one step on the terminal, or every LOG_INTERVAL steps a line */
void log_step(const struct run *r, const struct step_row *row);
/** log_skip() - a skipped update */
void log_skip(const struct run *r, const struct step_row *row, const char *tensor);
/** log_line() - a whole line on stdout, under the progress line */
void log_line(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/** result_write() - DIR/result.json and the closing lines */
void result_write(struct run *r);
/** result_show() - the closing lines of a finished run; false if it has none for @total steps */
bool result_show(const char *dir, int64_t total);

/** stop_install() - the first SIGTERM or SIGINT asks, the second exits at once */
void stop_install(void);
/** stop_signal() - the signal that came, 0 none */
int stop_signal(void);

#endif
