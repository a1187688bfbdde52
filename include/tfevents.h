/* SPDX-License-Identifier: MIT */
/**
 * DOC: TensorBoard event files
 *
 * Scalars as TensorBoard reads them: "events.out.tfevents.<time>.<host>", records of
 * {length, masked CRC-32C, Event, masked CRC-32C}.
 */
#ifndef TENON_TFEVENTS_H
#define TENON_TFEVENTS_H

#include "util.h"

struct tfevents;

/**
 * tfevents_open() - go on with the newest event file of a folder, or start one
 * @dir: folder, exists
 *
 * Cut it back first where the run resumes. Returns: NULL with errno set.
 */
struct tfevents *tfevents_open(const char *dir);

/**
 * tfevents_scalar() - one value; in the file when it returns
 * @tag: e.g. "train/loss"
 *
 * Returns: 0 or -errno.
 */
int tfevents_scalar(struct tfevents *t, int64_t step, const char *tag, double value);

/** tfevents_sync() - what was logged is on the disk. Returns: 0 or -errno */
int tfevents_sync(struct tfevents *t);

/** tfevents_close() - fsync, close, free. Returns: 0 or -errno */
int tfevents_close(struct tfevents *t);

/**
 * tfevents_cut() - forget what was logged after a step
 * @dir: folder; one without event files, or none, is fine
 * @step: last step that stays
 * @tag: NULL, or a tag of which @step itself goes as well
 *
 * Every event file ends before its first record of a later step (or of @tag at @step), or
 * before its first torn or damaged record. Returns: 0 or -errno.
 */
int tfevents_cut(const char *dir, int64_t step, const char *tag);

#endif
