/* SPDX-License-Identifier: MIT */
/*
 * Inside train/: the pieces of a run, and what its tests need of them.
 */
#ifndef TENON_TRAIN_H
#define TENON_TRAIN_H

#include "checkpoint.h"
#include "data.h"
#include "model.h"

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

/* ---- metrics.c ------------------------------------------------------------ */

/**
 * struct step_row - what is logged of a step
 * @step: steps completed with it
 * @tokens: tokens seen so far
 * @loss: mean loss of its micro-batches, without auxiliary losses
 * @lr: of the schedule
 * @grad_norm: global norm before the clip
 * @tok_s: tokens per second
 * @ms: wall time on the device
 * @skipped: updates skipped so far
 * @has_aux: the model has auxiliary losses
 * @loss_aux: their mean sum
 */
struct step_row {
	int64_t step, tokens;
	double loss, lr, grad_norm, tok_s, ms;
	int64_t skipped;
	bool has_aux;
	double loss_aux;
};

/**
 * struct eval - what an evaluation came to
 * @loss: mean over the scored positions
 * @acc: where sequences are drawn, the share of those whose likeliest token is the target
 * @floor: of a Markov chain, its own loss on the same targets
 * @rows: sequences
 */
struct eval {
	double loss, acc, floor;
	int64_t rows;
};

struct metrics;

/**
 * metrics_open() - cut DIR/metrics.jsonl back to where it was at @st->step, write the event
 * file anew from what stays, and append to both
 *
 * One that is missing or does not begin as @st->log says is named on stderr and moved
 * aside; its whole rows up to @st->step stay.
 *
 * The others do nothing with a NULL @t, which a rank that does not lead has.
 */
struct metrics *metrics_open(const char *dir, const struct ckpt_state *st);
/** metrics_mark() - what the file is by now */
void metrics_mark(const struct metrics *t, struct ckpt_log *at);
/** metrics_step() - the row of one step */
void metrics_step(struct metrics *t, const struct step_row *r);
/** metrics_eval() - the row of one evaluation */
void metrics_eval(struct metrics *t, int64_t step, const char *split, const struct eval *e);
/** metrics_stats() - the row of statistics of one sub-layer */
void metrics_stats(struct metrics *t, int64_t step, int layer, const char *mixer,
		   const struct metric *values, int nr);
/** metrics_sync() - what was logged is on the disk */
void metrics_sync(struct metrics *t);
/** metrics_success() - the run came to its end; TensorBoard tells it from others */
void metrics_success(struct metrics *t);
/** metrics_close() - finish the files */
void metrics_close(struct metrics *t);

/* ---- run.c, folder.c, step.c, stats.c, eval.c, log.c, result.c, stop.c -------------- */

/* Parts of a step that bench tells apart. */
enum stage { STAGE_FORWARD, STAGE_BACKWARD, STAGE_MERGE, STAGE_UPDATE, NR_STAGES };

/**
 * struct late - a step whose update was started and whose outcome is not read yet
 * @pending: there is one
 * @row: what is known of it
 * @state: the optimizer's scalars after it, once @mark is reached
 * @loss: its mean loss and auxiliary loss, the same
 * @from, @mark: where the step begins and ends on the device
 */
struct late {
	bool pending;
	struct step_row row;
	union optim_memory state;
	double loss[2];
	struct arch_mark from, mark;
};

/**
 * struct run - one training run
 * @m: model, placed in the arena
 * @plan: its memory
 * @accum: gradient buffers
 * @optim: the optimizer
 * @st: where the run is; st.optim is the state after the last step that was read
 * @dir: its folder
 * @label: what a study calls it, "" by itself
 * @folder: descriptor of that folder, locked; 0 where this rank does not lead
 * @tok: host [B_MAX][T_MAX]
 * @target: host [B_MAX][T_MAX]
 * @metrics: open log, NULL where this rank does not lead
 * @saved: step of the last checkpoint, -1 none
 * @before: arch_memory_used() before the arena was taken
 * @bigram: data_bigram_loss(), read before anything is written: a small vocabulary's
 *	whole data is looked at once, and a bad token ends the run before it begins
 * @micro: forward and backward into each gradient buffer
 * @merge: by older and newer buffer
 * @late: the step before
 * @begun: where the running step begins on the device
 * @stage: NULL, or told when the kernels of each stage were started; forward and backward
 *	then start apart
 */
struct run {
	struct model m;
	struct plan plan;
	struct accum accum;
	struct optim optim;
	struct ckpt_state st;
	const char *dir, *label;
	int folder;
	int32_t *tok, *target;
	struct metrics *metrics;
	int64_t saved;
	size_t before;
	double bigram;
	struct arch_graph micro[ACCUM_MAX_SLOTS], merge[ACCUM_MAX_SLOTS][ACCUM_MAX_SLOTS];
	struct late late;
	struct arch_mark begun;
	void (*stage)(enum stage s);
};

/**
 * folder_open() - make the folder of a run where it is missing, and lock it
 * @restart: one that is there is first moved to DIR.old-1, or the next free number
 *
 * Dies where another process has it, or where it cannot be written. Returns: a descriptor;
 * the lock lasts as long as it is open.
 */
int folder_open(const char *dir, bool restart);

/**
 * folder_check() - dies where r->dir is no longer the folder that was opened
 *
 * Another run may have made it anew by now; what this one wrote went with the old one.
 */
void folder_check(const struct run *r);

/** run_place() - the arena, planned to the byte, and every buffer in it */
void run_place(struct run *r);

/** run_want() - the state of a run that has not begun; after data_open() */
struct ckpt_state run_want(int64_t seed, int64_t total);

/** run_begin() - place, and weights from the seed of @want */
void run_begin(struct run *r, const struct ckpt_state *want);

/** step_micros() - micro-batches of a step that this rank computes */
int step_micros(void);

/**
 * step_micro() - one micro-batch: up, forward, backward, into the accumulation tree;
 * asynchronous
 * @j: which of this rank's, from 0 on in this order
 * @x: a full-size batch
 */
void step_micro(struct run *r, int j, const struct batch *x);

/**
 * step_begin() - the micro-batches of the next step, from the data; asynchronous
 *
 * Returns: false where a signal came: the unfinished accumulation is dropped then.
 */
bool step_begin(struct run *r);

/**
 * step_update() - fold and update; asynchronous
 *
 * The run counts one step more; what came of it is read by step_late(), before the next
 * step_update().
 */
void step_update(struct run *r);

/**
 * step_late() - wait for the step whose update was started last
 * @row: gets all of it
 * @nonfinite: gets the name of what was not finite, NULL if nothing
 *
 * Returns: false where it was read already.
 */
bool step_late(struct run *r, struct step_row *row, const char **nonfinite);

/** stats_log() - rows for @step of the mixers that keep statistics; waits */
void stats_log(const struct run *r, int64_t step);

/** train_loop() - steps up to the end, a signal or the time limit; the exit status */
int train_loop(struct run *r);

/**
 * eval_split() - over @count fixed batches of a split, or where it has less all of it
 *
 * Returns: false where a signal came.
 */
bool eval_split(struct model *m, enum split s, int count, struct eval *e);

/** eval_place() - lay out a model for evaluation alone: no gradients, no moments */
void eval_place(struct model *m);

/** eval_more() - malloc'ed "  acc 0.9876", what there is beside a loss; or "" */
char *eval_more(const struct eval *e);

/** eval_reached() - whether the step was evaluated and has STOP_ACCURACY */
bool eval_reached(const struct ckpt_state *st);

/** log_start() - the first lines of a run */
void log_start(const struct run *r, int64_t from);
/** log_step() - every LOG_INTERVAL steps a line; on a terminal the steps between in one line */
void log_step(const struct run *r, const struct step_row *row);
/** log_eval() - a line of an evaluation; on a terminal cut at its width, as steps are */
void log_eval(const struct run *r, const struct eval *e);
/** log_skip() - a skipped update */
void log_skip(const struct run *r, const struct step_row *row, const char *tensor);
/** log_line() - a whole line on stdout, under the progress line; of the rank that leads */
void log_line(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/** result_write() - DIR/result.json and the closing lines */
void result_write(struct run *r);
/** result_drop() - none while the run trains: one that lost its last checkpoint has an older one */
void result_drop(const char *dir);
/** result_show() - the closing lines of a finished run; false if it has none for @total steps */
bool result_show(const char *dir, int64_t total);

/** stop_install() - the first SIGTERM or SIGINT asks, the second exits at once */
void stop_install(void);
/** stop_agreed() - the signal that came to any rank, 0 none; all ranks call it */
int stop_agreed(void);

#endif
