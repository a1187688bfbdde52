// SPDX-License-Identifier: MIT
/*
 * What the optimizers share: their buffers, which elements each rank owns, the order of
 * an update, and the look for what was not finite.
 */
#include <assert.h>
#include <stdlib.h>

#include "arch.h"
#include "dist.h"
#include "optim.h"
#include "util.h"

enum { MICROS = CONFIG_GRADIENT_ACCUMULATION };

static size_t aligned(size_t bytes)
{
	return ROUND_UP(bytes, TENSOR_ALIGN);
}

static size_t nr_chunks(size_t elems)
{
	return (elems + OPTIM_CHUNK - 1) / OPTIM_CHUNK;
}

/* First element that rank @r owns: whole chunks, as even as these allow. */
static size_t own_from(size_t elems, int r)
{
	return MIN(elems, nr_chunks(elems) * r / dist_size() * OPTIM_CHUNK);
}

static size_t own_elems(size_t elems)
{
	return own_from(elems, dist_rank() + 1) - own_from(elems, dist_rank());
}

size_t optim_bytes(size_t elems, int entries)
{
	size_t buffers = optim_rule.nr_buffers + OPTIM_MASTER;

	return buffers * aligned(own_elems(elems) * sizeof(grad_t)) +
	       aligned(optim_rule.state_size) + aligned(nr_chunks(elems) * sizeof(double)) +
	       aligned(nr_chunks(elems) * sizeof(int32_t)) +
	       aligned(entries * sizeof(struct optim_range)) + aligned(3 * sizeof(double)) +
	       aligned(2 * MICROS * sizeof(double));
}

static void *take(char **at, size_t bytes)
{
	void *p = *at;

	*at += aligned(bytes);
	return p;
}

/* One range per tensor. */
static void put_ranges(const struct model *m, struct optim_range *ranges)
{
	struct optim_range *r = xcalloc(model_nr_entries(m), sizeof(*r));

	for (int i = 0; i < model_nr_entries(m); i++) {
		const struct param_entry *e = model_entry(m, i);

		r[i].offset = e->offset;
		r[i].numel = e->numel;
		r[i].decay = e->p->flags & DECAY ? CONFIG_WEIGHT_DECAY : 0;
		r[i].rate = e->p->flags & BY_SIGN ? e->p->rate : 0;
		r[i].frozen = e->p->flags & FROZEN ? 1 : 0;
		r[i].wide = e->p->flags & WIDE ? 1 : 0;
	}
	arch_put(ranges, r, model_nr_entries(m) * sizeof(*r));
	free(r);
}

/*
 * Bytes of m->w before which the weights of all elements before @elem stand. Those of a
 * wide tensor take more room than its elements, so that they end behind them.
 */
static size_t weight_byte(const struct model *m, size_t elem)
{
	for (int i = 0; i < model_nr_entries(m); i++) {
		const struct param_entry *e = model_entry(m, i);

		if (e->p->flags & WIDE && elem > e->offset &&
		    elem - e->offset < e->numel * sizeof(acc_t) / sizeof(param_t))
			return e->offset * sizeof(param_t) +
			       MIN(elem - e->offset, e->numel) * sizeof(acc_t);
	}
	return elem * sizeof(param_t);
}

static void place_bounds(struct optim *o, const struct model *m)
{
	size_t **bounds[] = { &o->own, &o->own_weights, &o->own_partial, &o->own_bad,
			      &o->own_losses };
	int ranks = dist_size();

	for (size_t i = 0; i < ARRAY_SIZE(bounds); i++)
		*bounds[i] = xcalloc(ranks + 1, sizeof(**bounds[i]));
	for (int r = 0; r <= ranks; r++) {
		o->own[r] = own_from(model_elems(m), r);
		o->own_weights[r] = weight_byte(m, o->own[r]);
		o->own_partial[r] = nr_chunks(o->own[r]) * sizeof(*o->partial);
		o->own_bad[r] = nr_chunks(o->own[r]) * sizeof(*o->bad);
		o->own_losses[r] = (size_t)MICROS / ranks * r * sizeof(*o->losses);
	}
}

void optim_place(struct optim *o, const struct model *m, void *mem)
{
	size_t n = own_elems(model_elems(m)), chunks = nr_chunks(model_elems(m));
	struct optim_range *ranges;
	char *at = mem;

	for (int i = 0; i < optim_rule.nr_buffers; i++)
		o->buf[i] = take(&at, n * sizeof(grad_t));
	o->master = OPTIM_MASTER ? take(&at, n * sizeof(grad_t)) : NULL;
	o->state = take(&at, optim_rule.state_size);
	o->partial = take(&at, chunks * sizeof(*o->partial));
	o->bad = take(&at, chunks * sizeof(*o->bad));
	ranges = take(&at, model_nr_entries(m) * sizeof(*ranges));
	o->lr = take(&at, 3 * sizeof(double));
	o->loss = o->lr + 1;
	o->losses = take(&at, 2 * MICROS * sizeof(double));
	assert(at == (char *)mem + optim_bytes(model_elems(m), model_nr_entries(m)));
	o->span = (struct optim_span){
		.offset = own_from(model_elems(m), dist_rank()), .n = n,
		.ranges = ranges, .nr = model_nr_entries(m),
	};
	put_ranges(m, ranges);
	place_bounds(o, m);
}

struct update {
	struct optim *o;
	struct model *m;
	grad_t *grad;
};

/* What every update starts, in this order; recorded once for each gradient buffer. */
static void update_body(void *arg)
{
	const struct update *u = arg;
	struct optim *o = u->o;

	for (int i = 0; i < 2; i++) {
		dist_gather(o->losses + i * MICROS, o->own_losses);
		k_loss_tree(o->loss + i, o->losses + i * MICROS, MICROS);
	}
	dist_sum(u->grad, 0, model_elems(u->m), o->own);
	optim_rule.norm(o, u->m, u->grad);
	dist_gather(o->partial, o->own_partial);
	dist_gather(o->bad, o->own_bad);
	k_optim_guard(o->state, o->partial, nr_chunks(model_elems(u->m)), o->loss);
	optim_rule.update(o, u->m, u->grad);
	dist_gather(model_weights(u->m), o->own_weights);
}

void optim_update(struct optim *o, struct model *m, grad_t *grad, double lr)
{
	int i = 0;

	while (o->graph[i].grad && o->graph[i].grad != grad)
		if (++i == ACCUM_MAX_SLOTS)
			die_bug("more gradient buffers than %d", ACCUM_MAX_SLOTS);
	o->graph[i].grad = grad;
	arch_put(o->lr, &lr, sizeof(lr));
	arch_replay(&o->graph[i].graph, update_body, &(struct update){ o, m, grad });
}

void optim_get_later(const struct optim *o, union optim_memory *st, double loss[2])
{
	arch_get_later(st->bytes, o->state, optim_rule.state_size);
	arch_get_later(loss, o->loss, 2 * sizeof(*loss));
}

void optim_put(struct optim *o, const union optim_memory *st)
{
	arch_put(o->state, st->bytes, optim_rule.state_size);
}

static const char *tensor_at(const struct model *m, size_t elem)
{
	int i = model_nr_entries(m) - 1;

	while (i && model_entry(m, i)->offset > elem)
		i--;
	return model_entry(m, i)->name;
}

const char *optim_nonfinite(const struct optim *o, const struct model *m)
{
	size_t chunks = nr_chunks(model_elems(m));
	int32_t *bad = xmalloc(chunks * sizeof(*bad));
	const char *name = NULL;

	arch_get(bad, o->bad, chunks * sizeof(*bad));
	for (size_t c = 0; c < chunks && !name; c++)
		if (bad[c] >= 0)
			name = tensor_at(m, c * OPTIM_CHUNK + bad[c]);
	free(bad);
	return name;
}
