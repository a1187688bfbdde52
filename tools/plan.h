/* SPDX-License-Identifier: MIT */
/* Inside tools/: what the verb plan says, for people and for scripts. */
#ifndef TENON_TOOLS_PLAN_H
#define TENON_TOOLS_PLAN_H

#include "model.h"

#define MIB (1024.0 * 1024)

enum { PHASES = 3, PARTS = 7 };

/**
 * struct report - everything that is printed
 * @m: laid out, nothing placed
 * @plan: by phase; decode with @sequences
 * @sequences: of the decode phase
 * @arena: bytes in training with each way to recompute
 * @flops_decode: operations of one decode step at the last position, per sequence
 * @same_bits: ranks that share the micro-batches of a step change no bit
 * @elsewhere: of a run on another machine, so that no device was opened
 * @data: what was read for --check, or NULL
 */
struct report {
	struct model m;
	struct plan plan[PHASES];
	int sequences;
	size_t arena[NR_RECOMPUTE];
	double flops_decode;
	bool same_bits, elsewhere;
	const char *data;
};

/**
 * struct part - one part of an arena
 * @name: for people
 * @key: for scripts
 * @bytes: its size
 */
struct part {
	const char *name, *key;
	size_t bytes;
};

extern const char *const recompute_names[NR_RECOMPUTE];

/** plan_parts() - the parts of a phase's arena, the whole last */
void plan_parts(const struct plan *p, struct part parts[PARTS]);

/** plan_text() - the report on stdout */
void plan_text(const struct report *r);

/** plan_json() - the same as one object, and what scripts need of each sub-layer */
void plan_json(const struct report *r);

#endif
