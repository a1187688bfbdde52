// SPDX-License-Identifier: MIT
/*
 * A model in its decode phase: weights, caches, and one token at a time.
 */
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
			die("generate: %s", m->sub[s].mixer->leaks);
}

void decoder_open(struct decoder *d, const char *checkpoint)
{
	struct plan plan;

	memset(d, 0, sizeof(*d));
	model_layout(&d->m);
	refuse_leak(&d->m);
	model_plan(&d->m, &plan, PHASE_DECODE, 1);
	if (plan.bytes_arena > arch_memory())
		die("generate: needs %zu MiB of memory, %zu MiB are free; close other programs",
		    plan.bytes_arena >> 20, arch_memory() >> 20);
	d->bytes = plan.bytes_arena;
	d->arena = arch_alloc(d->bytes);
	model_place(&d->m, d->arena, PHASE_DECODE, 1, 0, NULL);
	ckpt_load_weights(checkpoint, &d->m);
}

/* A step at position 0 reads nothing of what the caches held. */
void decoder_rewind(struct decoder *d)
{
	d->pos = 0;
}

void decoder_feed(struct decoder *d, int32_t token, act_t *logits)
{
	const act_t *out = model_step(&d->m, &token, 1, d->pos++);

	if (logits)
		arch_get(logits, out, V * sizeof(*logits));
}

void decoder_close(struct decoder *d)
{
	arch_free(d->arena, d->bytes);
}
