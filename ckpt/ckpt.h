/* SPDX-License-Identifier: MIT */
/*
 * Inside ckpt/: the files of a checkpoint, and which configuration may read it.
 */
#ifndef TENON_CKPT_H
#define TENON_CKPT_H

#include "checkpoint.h"

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

/** manifest_write() - the last file of a checkpoint of @config, as a text; 0 or -errno */
int manifest_write(const char *folder, const struct ckpt_file files[CKPT_FILES],
		   const struct ckpt_state *st, const char *config);

/**
 * manifest_check() - whether a checkpoint is what was written
 * @folder: checkpoint folder
 * @config: gets the malloc'ed configuration text it was written under
 * @st: gets machine and log, which a repeated run may have otherwise
 *
 * Reads every byte of every file. Returns: NULL, or a malloc'ed
 * "FILE: what is wrong".
 */
char *manifest_check(const char *folder, char **config, struct ckpt_state *st);

/* ---- state.c -------------------------------------------------------------- */

/** state_write() - state.json of a checkpoint; 0 or -errno */
int state_write(const char *folder, const struct ckpt_state *st, struct ckpt_file *f);

/** state_read() - the rest of @st; NULL, or a malloc'ed "FILE: what is wrong" */
char *state_read(const char *folder, struct ckpt_state *st);

/* ---- tensors.c ------------------------------------------------------------ */

/** tensors_write() - a file with every tensor of @nr sets; 0 or -errno */
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
char *tensors_read(const char *folder, const char *name, struct model *m,
		   const struct tensor_set *sets, int nr);

/**
 * tensors_of() - the sets of an optimizer's files
 * @o: NULL: only weights, without masters
 * @weights: gets the one of model.safetensors
 * @buffers: gets those of optim.safetensors, optim_rule.nr_buffers
 */
void tensors_of(const struct optim *o, struct tensor_set *weights,
		struct tensor_set buffers[OPTIM_BUFFERS]);

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

/**
 * ckpt_list() - steps of the checkpoints in a run folder, newest first
 * @steps: gets a malloc'ed array
 *
 * Returns: its length.
 */
int ckpt_list(const char *dir, int64_t **steps);

#endif
