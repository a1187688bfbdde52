/* SPDX-License-Identifier: MIT */
/**
 * DOC: checkpoints
 *
 * A run folder holds ckpt-000200/ folders and "best", a link to one of them. Each
 * has model.safetensors, optim.safetensors, state.json and, written last,
 * manifest.json with sizes and SHA-256 of the others and the configuration.
 * Documentation/checkpoints.md.
 */
#ifndef TENON_CHECKPOINT_H
#define TENON_CHECKPOINT_H

#include "optim.h"

/**
 * struct ckpt_log - what metrics.jsonl was at a step
 * @bytes: its size
 * @sha256: hex digest of these bytes
 */
struct ckpt_log {
	int64_t bytes;
	char sha256[65];
};

/**
 * struct ckpt_state - what a run is besides its tensors (state.json)
 * @step: steps completed
 * @total: steps of the schedule
 * @seed: key of all random numbers
 * @micro: number of the next micro-batch, over all ranks: the data position
 * @eval_step: step of the last evaluation, -1 none
 * @eval_loss: its validation loss
 * @eval_acc: where sequences are drawn, its accuracy
 * @best_step: step of the lowest validation loss, of DATA_MQAR of the highest accuracy and of
 *	several the lowest loss; -1 none
 * @best_loss, @best_acc: the same of that step
 * @data: digest of the data, as the source describes it
 * @machine: arch_bits() where it was computed
 * @log: metrics.jsonl after @step
 * @optim: the optimizer's scalars after @step
 */
struct ckpt_state {
	int64_t step, total, seed, micro;
	int64_t eval_step, best_step;
	double eval_loss, best_loss, eval_acc, best_acc;
	char data[65], machine[160];
	struct ckpt_log log;
	union optim_memory optim;
};

/** ckpt_folder() - malloc'ed DIR/ckpt-000200 */
char *ckpt_folder(const char *dir, int64_t step);

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

/** ckpt_link_best() - "best" means the checkpoint of @step, where there is one */
void ckpt_link_best(const char *dir, int64_t step);

/**
 * ckpt_newest() - the newest checkpoint of a run that is whole
 * @folder: gets its malloc'ed path
 * @config: gets the malloc'ed configuration text it was written under
 * @st: gets its state
 *
 * Damaged ones that are newer are named on stderr, a line each. Returns: false where there
 * is no checkpoint; dies with one line where there are only damaged ones.
 */
bool ckpt_newest(const char *dir, char **folder, char **config, struct ckpt_state *st);

/**
 * ckpt_accept() - refuse to resume what another configuration began
 * @was: state of the checkpoint
 * @is: total, seed, data and machine of this run; another machine is only told
 * @allow: symbols that leave the tensors alone may differ
 */
void ckpt_accept(const char *folder, const char *config, const struct model *m,
		 const struct ckpt_state *was, const struct ckpt_state *is, bool allow);

/**
 * ckpt_load() - weights, their masters and the optimizer's buffers; dies where they cannot
 * be read
 */
void ckpt_load(const char *folder, struct model *m, struct optim *o, const struct ckpt_state *st);

/**
 * ckpt_find() - the checkpoint that a path means
 * @path: a checkpoint folder or a run folder
 *
 * Returns: malloc'ed path of a checkpoint folder: @path itself, or in a run folder what
 * "best" points to, else the newest. Dies where there is none.
 */
char *ckpt_find(const char *path);

/**
 * ckpt_load_weights() - weights of a checkpoint into m->w
 * @path: a checkpoint folder or a run folder, see ckpt_find()
 * @m: placed
 *
 * Sizes, checksums and header are verified before anything is used. Dies where
 * they are wrong, or where the checkpoint comes from a configuration with
 * another function, naming the file or the differing symbols; symbols that only
 * steer training may differ.
 *
 * Returns: the step of the checkpoint.
 */
int64_t ckpt_load_weights(const char *path, struct model *m);

/**
 * struct ckpt_tensor - one tensor of a file
 * @name: in full
 * @ndim: dimensions
 * @shape: their sizes
 * @x: values
 */
struct ckpt_tensor {
	char *name;
	int ndim;
	int64_t shape[3];
	grad_t *x;
};

/**
 * ckpt_derive() - a checkpoint of another configuration, made from one
 * @from: a checkpoint folder or a run folder, see ckpt_find(); its state is taken over
 * @folder: the new one; refused where it exists
 * @config: the whole configuration that it is for
 * @t: [nr] its weights
 * @fragment: what that configuration sets otherwise, written beside as absorbed.config
 *
 * Whole or not at all. It has no buffers of an optimizer: it serves wherever weights do.
 */
void ckpt_derive(const char *from, const char *folder, const char *config,
		 const struct ckpt_tensor *t, int nr, const char *fragment);

/* ---- tensors of a model in safetensors files -------------------------------- */

struct st_writer;

/**
 * struct tensor_set - one number per parameter, in a file
 * @prefix: before every tensor's name
 * @buf: device [param_elems]: gradients, a buffer of the optimizer's, or master weights;
 *	NULL: the weights themselves
 * @which: of which tensors
 * @weights: they are weights: m->w follows what is read, rounded where it is narrower
 */
struct tensor_set {
	const char *prefix;
	grad_t *buf;
	enum tensor_kind { TENSORS_ALL, TENSORS_TRAINED, TENSORS_FROZEN } which;
	bool weights;
};

/** tensors_declare() - every tensor of a set, REAL_NAME, in buffer order */
void tensors_declare(struct st_writer *w, const struct model *m, const struct tensor_set *set);

/** tensors_stream() - their values, in the same order; 0 or -errno */
int tensors_stream(struct st_writer *w, const struct model *m, const struct tensor_set *set);

/** tensors_sha256() - digest of all weights, in the order of the file */
void tensors_sha256(const struct model *m, const struct optim *o, char hex[65]);

#endif
