// SPDX-License-Identifier: MIT
/*
 * The memory of a run, as planned, taken in one piece.
 */
#include <stdio.h>
#include <string.h>

#include "arch.h"
#include "dist.h"
#include "train.h"
#include "util.h"

void run_place(struct run *r)
{
	int slots = accum_slots(CONFIG_GRADIENT_ACCUMULATION / dist_size());
	size_t grads = slots * r->m.param_elems * sizeof(grad_t);
	size_t extra = grads + optim_bytes(r->m.param_elems, r->m.nr_entries);
	size_t bytes = model_place(&r->m, NULL, PHASE_TRAIN, 0, extra, NULL);
	void *at;

	if (bytes != r->plan.bytes_arena)
		die_bug("planned %zu bytes, placed %zu", r->plan.bytes_arena, bytes);
	r->before = arch_memory_used(NULL);
	model_place(&r->m, arch_alloc(bytes), PHASE_TRAIN, 0, extra, &at);
	accum_place(&r->accum, slots, r->m.param_elems, at);
	optim_place(&r->optim, &r->m, (char *)at + grads);
	r->tok = xmalloc(sizeof(*r->tok) * BT);
	r->target = xmalloc(sizeof(*r->target) * BT);
}

/* The digest is the last word of the source's description. */
struct ckpt_state run_want(int64_t seed, int64_t total)
{
	struct ckpt_state st = {
		.seed = seed, .total = total, .eval_step = -1, .best_step = -1,
	};
	const char *digest = strrchr(source_describe(), ' ');

	snprintf(st.data, sizeof(st.data), "%s", digest ? digest + 1 : "");
	snprintf(st.machine, sizeof(st.machine), "%s", arch_bits());
	return st;
}

void run_begin(struct run *r, const struct ckpt_state *want)
{
	r->st = *want;
	run_place(r);
	model_init_params(&r->m, r->optim.master, want->seed);
}
