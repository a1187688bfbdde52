/* SPDX-License-Identifier: MIT */
/**
 * DOC: TensorBoard event files
 *
 * Scalars, texts and hyper-parameters as TensorBoard reads them: "events.out.tfevents.<time>.<host>", records of
 * {length, masked CRC-32C, Event, masked CRC-32C}.
 */
#ifndef TENON_TFEVENTS_H
#define TENON_TFEVENTS_H

#include "util.h"

struct tfevents;

/**
 * tfevents_create() - start the event file of a folder anew
 * @dir: folder, exists; event files in it go
 *
 * Returns: NULL with errno set.
 */
struct tfevents *tfevents_create(const char *dir);

/**
 * tfevents_scalar() - one value; in the file when it returns
 * @tag: e.g. "loss/train"
 *
 * Returns: 0 or -errno.
 */
int tfevents_scalar(struct tfevents *t, int64_t step, const char *tag, double value);

/**
 * tfevents_text() - a text, of step 0; in the file when it returns
 * @text: UTF-8; TensorBoard shows it as Markdown
 *
 * Returns: 0 or -errno.
 */
int tfevents_text(struct tfevents *t, const char *tag, const char *text);

/**
 * struct tfevents_hparam - a hyper-parameter
 * @text: HPARAM_TEXT: UTF-8
 * @number: HPARAM_NUMBER; HPARAM_SWITCH: 0 is off
 */
struct tfevents_hparam {
	const char *name;
	enum { HPARAM_TEXT, HPARAM_NUMBER, HPARAM_SWITCH } kind;
	const char *text;
	double number;
};

/** tfevents_hparams() - what this run was made with. Returns: 0 or -errno */
int tfevents_hparams(struct tfevents *t, const struct tfevents_hparam *list, int nr);

/** tfevents_success() - the run came to its end. Returns: 0 or -errno */
int tfevents_success(struct tfevents *t);

/** tfevents_sync() - what was logged is on the disk. Returns: 0 or -errno */
int tfevents_sync(struct tfevents *t);

/** tfevents_close() - fsync, close, free. Returns: 0 or -errno */
int tfevents_close(struct tfevents *t);

#endif
