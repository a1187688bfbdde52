/* SPDX-License-Identifier: MIT */
/*
 * Writing protobuf messages (protobuf.dev, "Encoding"): each call appends one field. What
 * has the value 0 is written too.
 */
#ifndef TENON_PROTOBUF_H
#define TENON_PROTOBUF_H

#include "util.h"

/* A message so far; starts as all 0, pb_free() when it is done with. */
struct pb {
	uint8_t *p;
	size_t n, room;
};

void pb_int(struct pb *m, int field, uint64_t v);
void pb_float(struct pb *m, int field, float v);
void pb_double(struct pb *m, int field, double v);
void pb_bytes(struct pb *m, int field, const void *data, size_t n);
void pb_string(struct pb *m, int field, const char *text);
/* A message inside; @inner is freed. */
void pb_message(struct pb *m, int field, struct pb *inner);
void pb_free(struct pb *m);

#endif
