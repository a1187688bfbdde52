// SPDX-License-Identifier: MIT
/*
 * The memory of a run: planned, compared with what there is, taken in one piece.
 */
#include <stdio.h>
#include <string.h>

#include "arch.h"
#include "dist.h"
#include "train.h"
#include "util.h"

#define GIB (1024.0 * 1024 * 1024)

void run_refuse_plan(const struct plan *p)
{
	size_t state = p->bytes_params + p->bytes_grads + p->bytes_optim;
	size_t there = arch_memory();

	if (p->bytes_arena <= there)
		return;
	if (state > there)
		die("the plan needs %.2f GiB, there are %.2f: weights, gradients and moments alone "
		    "take %.2f; lower CONFIG_N_LAYER (%d), CONFIG_N_EMBD (%d) or "
		    "CONFIG_GRADIENT_ACCUMULATION (%d)", p->bytes_arena / GIB, there / GIB,
		    state / GIB, NL, C, CONFIG_GRADIENT_ACCUMULATION);
	die("the plan needs %.2f GiB, there are %.2f: activations and scratch take %.2f; lower "
	    "CONFIG_BATCH_SIZE (%d), CONFIG_BLOCK_SIZE (%d) or CONFIG_N_LAYER (%d)",
	    p->bytes_arena / GIB, there / GIB, (p->bytes_act + p->bytes_tmp) / GIB, B_MAX, T_MAX,
	    NL);
}

void run_place(struct run *r)
{
	int slots = accum_slots(CONFIG_GRADIENT_ACCUMULATION / dist_size());
	size_t grads = slots * r->m.param_elems * sizeof(grad_t);
	size_t extra = grads + optim_bytes(r->m.param_elems, r->m.nr_entries);
	size_t bytes = model_place(&r->m, NULL, PHASE_TRAIN, 0, extra, NULL);
	void *at;

	if (bytes != r->plan.bytes_arena)
		die_bug("planned %zu bytes, placed %zu", r->plan.bytes_arena, bytes);
	r->rss = peak_rss();
	model_place(&r->m, arch_alloc(bytes), PHASE_TRAIN, 0, extra, &at);
	accum_place(&r->accum, slots, r->m.param_elems, at);
	optim_place(&r->optim, &r->m, (char *)at + grads);
	r->tok = xmalloc(sizeof(*r->tok) * B_MAX * (T_MAX + 1));
}

/* The digest is the last word of the source's description. */
struct ckpt_state run_want(int64_t seed, int64_t total)
{
	struct ckpt_state st = {
		.seed = seed, .total = total, .eval_step = -1, .best_step = -1,
	};
	const char *digest = strrchr(source_describe(), ' ');

	snprintf(st.data, sizeof(st.data), "%s", digest ? digest + 1 : "");
	return st;
}

void run_begin(struct run *r, const struct ckpt_state *want)
{
	r->st = *want;
	run_place(r);
	model_init_params(&r->m, want->seed);
}
