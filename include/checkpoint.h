/* SPDX-License-Identifier: MIT */
/**
 * DOC: checkpoints
 *
 * A run folder holds step-000200/ folders and "best", a link to one of them. Each
 * has model.safetensors, optim.safetensors, state.json and, written last,
 * manifest.json with sizes and SHA-256 of the others and the configuration.
 * Documentation/checkpoints.md.
 */
#ifndef TENON_CHECKPOINT_H
#define TENON_CHECKPOINT_H

#include "optim.h"

/**
 * struct ckpt_state - what a run is besides its tensors (state.json)
 * @step: steps completed
 * @total: steps of the schedule
 * @seed: key of all random numbers
 * @micro: number of the next micro-batch, over all ranks: the data position
 * @eval_step: step of the last evaluation, -1 none
 * @eval_loss: its validation loss
 * @best_step: step of the lowest validation loss, -1 none
 * @best_loss: that loss
 * @data: digest of the data, as the source describes it
 * @optim: the optimizer's scalars
 */
struct ckpt_state {
	int64_t step, total, seed, micro;
	int64_t eval_step, best_step;
	double eval_loss, best_loss;
	char data[65];
	struct optim_state optim;
};

/**
 * ckpt_find() - the checkpoint that a path means
 * @path: a step folder or a run folder
 *
 * Returns: malloc'ed path of a step folder: @path itself, or in a run folder what
 * "best" points to, else the newest. Dies where there is none.
 */
char *ckpt_find(const char *path);

/**
 * ckpt_load_weights() - weights of a checkpoint into m->w
 * @path: a step folder or a run folder, see ckpt_find()
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

#endif
