// SPDX-License-Identifier: MIT
/*
 * A model in its decode phase: weights, caches, prompts at the speed of a forward, then
 * one token of every sequence at a time.
 */
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "checkpoint.h"
#include "infer.h"
#include "util.h"

/* What depends on later positions cannot be known before them. */
static void refuse_leak(const struct model *m)
{
	for (int s = 0; s < NR_SUB; s++)
		if (m->sub[s].mixer->leaks)
			die("decode: %s", m->sub[s].mixer->leaks);
}

void decoder_place(struct decoder *d, int sequences)
{
	struct plan plan;

	memset(d, 0, sizeof(*d));
	model_layout(&d->m);
	refuse_leak(&d->m);
	model_plan(&d->m, &plan, PHASE_DECODE, sequences);
	if (plan.bytes_arena > arch_memory())
		die("decode: %d sequences need %zu MiB of memory, %zu MiB are free; close other programs",
		    sequences, plan.bytes_arena >> 20, arch_memory() >> 20);
	d->bytes = plan.bytes_arena;
	d->arena = arch_alloc(d->bytes);
	model_place(&d->m, d->arena, PHASE_DECODE, sequences, 0, NULL);
	d->logits = arch_host_alloc((size_t)sequences * V * sizeof(*d->logits));
}

int64_t decoder_open(struct decoder *d, const char *checkpoint, int sequences)
{
	decoder_place(d, sequences);
	return ckpt_load_weights(checkpoint, &d->m);
}

static const acc_t *to_host(struct decoder *d, const acc_t *logits, int b)
{
	arch_get(d->logits, logits, sizeof(*logits) * b * V);
	return d->logits;
}

const acc_t *decoder_fill(struct decoder *d, const int32_t *tok, const int32_t *len, int b, int t)
{
	return to_host(d, model_fill(&d->m, &(struct batch){ .b = b, .t = t, .tok = tok }, len),
		       b);
}

const acc_t *decoder_step(struct decoder *d, const int32_t *tok, const int32_t *pos, int b)
{
	return to_host(d, model_step(&d->m, tok, pos, b), b);
}

void decoder_close(struct decoder *d)
{
	arch_host_free(d->logits);
	arch_free(d->arena, d->bytes);
}
