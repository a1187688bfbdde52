// SPDX-License-Identifier: MIT
/*
 * What AdamW and AdamWSPAM share: their buffers and the look for what was not
 * finite. Both keep two moments per element, the scalars of struct
 * optim_state, and a decay for every range of elements.
 */
#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "arch.h"
#include "train.h"
#include "util.h"

/* The weights that are read are the ones that are updated: no master copy. */
static_assert(sizeof(param_t) == sizeof(grad_t), "weights and gradients are of one type");

static size_t aligned(size_t bytes)
{
	return ROUND_UP(bytes, TENSOR_ALIGN);
}

static size_t nr_partial(size_t elems)
{
	return (elems + OPTIM_CHUNK - 1) / OPTIM_CHUNK;
}

size_t optim_bytes(size_t elems, int entries)
{
	return 2 * aligned(elems * sizeof(grad_t)) + aligned(nr_partial(elems) * sizeof(double)) +
	       aligned(entries * sizeof(struct optim_range)) +
	       aligned(sizeof(struct optim_state)) + aligned(2 * sizeof(double));
}

static void *take(char **at, size_t bytes)
{
	void *p = *at;

	*at += aligned(bytes);
	return p;
}

/* One range per tensor, the padding behind it included. */
static void place_ranges(struct optim *o, const struct model *m)
{
	struct optim_range *r = xcalloc(m->nr_entries, sizeof(*r));

	for (int i = 0; i < m->nr_entries; i++) {
		const struct param_entry *e = &m->entries[i];
		size_t end = i + 1 < m->nr_entries ? e[1].offset : m->param_elems;

		r[i].offset = i ? e->offset : 0;
		r[i].numel = end - r[i].offset;
		r[i].decay = e->p->decay == DECAY ? CONFIG_WEIGHT_DECAY : 0;
	}
	arch_put(o->ranges, r, m->nr_entries * sizeof(*r));
	o->nr_ranges = m->nr_entries;
	free(r);
}

void optim_place(struct optim *o, const struct model *m, void *mem)
{
	char *at = mem;

	o->m = take(&at, m->param_elems * sizeof(grad_t));
	o->v = take(&at, m->param_elems * sizeof(grad_t));
	o->partial = take(&at, nr_partial(m->param_elems) * sizeof(double));
	o->ranges = take(&at, m->nr_entries * sizeof(struct optim_range));
	o->state = take(&at, sizeof(struct optim_state));
	o->lr = take(&at, 2 * sizeof(double));
	o->loss = o->lr + 1;
	place_ranges(o, m);
}

void optim_apply(struct optim *o, struct model *m, grad_t *grad, double lr, double loss,
		 const struct optim_hyper *hp)
{
	size_t n = m->param_elems;

	arch_put(o->lr, &lr, sizeof(lr));
	arch_put(o->loss, &loss, sizeof(loss));
	k_grad_norm(o->partial, grad, n, hp);
	k_optim_decide(o->state, o->partial, nr_partial(n), o->loss, o->lr, hp);
	k_adamw(m->w, (grad_t *)m->w, grad, o->m, o->v, o->ranges, o->nr_ranges, hp, o->state);
}

void optim_get(const struct optim *o, struct optim_state *st)
{
	arch_get(st, o->state, sizeof(*st));
}

void optim_put(struct optim *o, const struct optim_state *st)
{
	arch_put(o->state, st, sizeof(*st));
}

const char *optim_nonfinite(const struct optim *o, const struct model *m, const grad_t *grad)
{
	const char *name = NULL;
	grad_t *g = xmalloc(OPTIM_CHUNK * sizeof(*g));

	(void)o;
	for (int i = 0; i < m->nr_entries && !name; i++) {
		const struct param_entry *e = &m->entries[i];

		for (size_t done = 0, n; done < e->numel && !name; done += n) {
			n = MIN(e->numel - done, (size_t)OPTIM_CHUNK);
			arch_get(g, grad + e->offset + done, n * sizeof(*g));
			for (size_t k = 0; k < n && !name; k++)
				if (!isfinite(g[k]))
					name = e->name;
		}
	}
	free(g);
	return name;
}
