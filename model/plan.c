// SPDX-License-Identifier: MIT
/*
 * The plan: parameters, bytes by phase and operations, before anything is
 * allocated.
 */
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "dist.h"
#include "model.h"
#include "optim.h"
#include "util.h"

#define GIB (1024.0 * 1024 * 1024)

static uint64_t count_params(const struct model *m)
{
	uint64_t n = 0;

	for (int i = 0; i < m->nr_entries; i++)
		n += m->entries[i].numel;
	return n;
}

/* What a token leaves unused of them. */
static uint64_t count_idle(const struct model *m)
{
	uint64_t n = 0;

	for (int s = 0; s < NR_SUB; s++)
		n += m->sub[s].mixer->idle ? m->sub[s].mixer->idle(m->sub[s].has) : 0;
	return n;
}

/* What the published table counted too: tensors of the last layer that nobody reads. */
static uint64_t count_unread(const struct model *m)
{
	uint64_t n = 0;

	for (int s = 0; s < NR_SUB; s++) {
		const struct mixer *x = m->sub[s].mixer;

		for (int i = 0; i < x->nr_params; i++)
			if (!param_exists(&x->params[i], m->sub[s].has))
				n += param_numel(&x->params[i]);
	}
	return n;
}

void model_work(const struct model *m, int s, int b, int t, bool backward, struct work *w)
{
	if (s == NR_SUB)
		work_linear(w, b * t, V, C, backward);
	else
		m->sub[s].mixer->work(w, b, t, m->sub[s].has, backward);
}

/* Of one forward (and backward) over b sequences of t positions. */
static double count_flops(const struct model *m, int b, int t, bool backward)
{
	struct work w = { .flops = 0 };

	for (int s = 0; s <= NR_SUB; s++) {
		model_work(m, s, b, t, false, &w);
		if (backward)
			model_work(m, s, b, t, true, &w);
	}
	free(w.products);
	return w.flops;
}

static void plan_cache(const struct model *m, struct plan *p)
{
	for (int s = 0; s < NR_SUB; s++) {
		const struct cache_size *c = &m->sub[s].cache;

		p->cache_token += c->token;
		p->cache_const += c->size - c->token * T_MAX;
	}
}

void model_plan(const struct model *m, struct plan *p, enum phase phase, int sequences)
{
	struct model *probe = xmalloc(sizeof(*probe));	/* grows with the layers: not on the stack */
	size_t extra;

	*probe = *m;
	memset(p, 0, sizeof(*p));
	p->params = count_params(m);
	p->params_active = p->params - count_idle(m);
	p->params_published = p->params + count_unread(m);
	p->bytes_params = ROUND_UP(m->param_elems * sizeof(param_t), TENSOR_ALIGN);
	if (phase == PHASE_TRAIN) {
		p->slots = accum_slots(CONFIG_GRADIENT_ACCUMULATION / dist_size());
		p->bytes_grads = p->slots * m->param_elems * sizeof(grad_t);
		p->bytes_optim = optim_bytes(m->param_elems, m->nr_entries);
	}
	for (int s = 0; s < NR_SUB && phase == PHASE_DECODE; s++)
		p->bytes_cache += ROUND_UP(m->sub[s].cache.size * sequences, TENSOR_ALIGN);
	p->bytes_act = model_act_size(probe, phase);
	extra = p->bytes_grads + p->bytes_optim;
	p->bytes_arena = model_place(probe, NULL, phase, sequences, extra, NULL);
	free(probe);
	p->bytes_tmp = p->bytes_arena - ROUND_UP(extra, TENSOR_ALIGN) - p->bytes_params -
		       p->bytes_act - p->bytes_cache;
	plan_cache(m, p);
	p->flops_token = count_flops(m, B_MAX, T_MAX, true) / BT;
	p->flops_token_fwd = count_flops(m, B_MAX, T_MAX, false) / BT;
}

void plan_refuse(const struct plan *p)
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
	    "CONFIG_BATCH_SIZE (%d), CONFIG_BLOCK_SIZE (%d) or CONFIG_N_LAYER (%d)%s",
	    p->bytes_arena / GIB, there / GIB, (p->bytes_act + p->bytes_tmp) / GIB, B_MAX, T_MAX,
	    NL, IS_ENABLED(CONFIG_RECOMPUTE_BLOCK) ? "" : ", or set CONFIG_RECOMPUTE_BLOCK=y");
}
