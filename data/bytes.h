/* SPDX-License-Identifier: MIT */
/*
 * Two splits of bytes in memory: what the embedded corpus and text files have in common.
 */
#ifndef TENON_BYTES_H
#define TENON_BYTES_H

#include "data.h"

/**
 * struct bytes - the splits
 * @p: [SPLIT_TRAIN, SPLIT_VAL] where their bytes start
 * @n: their lengths
 * @line: description for the log
 */
struct bytes {
	const uint8_t *p[2];
	uint64_t n[2];
	char *line;
};

/** bytes_split_tail() - the last tenth of @p becomes the validation split */
void bytes_split_tail(struct bytes *b, const uint8_t *p, uint64_t n);

/**
 * bytes_ready() - refuse a vocabulary without room for bytes; describe both splits
 * @origin: what the bytes are
 * @rule: how they were split
 */
void bytes_ready(struct bytes *b, const char *origin, const char *rule);

/** bytes_read() - token ids [pos, pos + n) of a split; a byte is its own id */
void bytes_read(const struct bytes *b, enum split s, uint64_t pos, int n, int32_t *dst);

#endif
