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
 * tfevents_create() - start the event file of a folder anew
 * @dir: folder, exists; event files in it go
 *
 * Returns: NULL with errno set.
 */
struct tfevents *tfevents_create(const char *dir);

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

#endif
