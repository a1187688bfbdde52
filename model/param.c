// SPDX-License-Identifier: MIT
/*
 * Parameters: which exist, what they take, their initial values, and their way
 * between host and device.
 */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "util.h"

bool param_exists(const struct param *p, unsigned int has)
{
	return param_numel(p) && (!p->need || (p->need & has));
}

size_t param_numel(const struct param *p)
{
	size_t n = 1;

	for (int i = 0; i < p->ndim; i++)
		n *= p->dims[i];
	return n;
}

size_t param_module_elems(const struct param *params, int nr, unsigned int has)
{
	size_t end = 0;

	for (int i = 0; i < nr; i++)
		if (param_exists(&params[i], has))
			end = MAX(end, params[i].offset +
				       param_numel(&params[i]) * PARAM_ELEM(params[i].flags));
	return ROUND_UP(end, TENSOR_ALIGN) / sizeof(param_t);
}

int model_nr_entries(const struct model *m)
{
	return m->nr_entries;
}

const struct param_entry *model_entry(const struct model *m, int i)
{
	return &m->entries[i];
}

size_t model_elems(const struct model *m)
{
	return m->param_elems;
}

param_t *model_weights(const struct model *m)
{
	return m->w;
}

const struct param_entry *model_find(const struct model *m, const char *name)
{
	for (int i = 0; i < m->nr_entries; i++)
		if (!strcmp(m->entries[i].name, name))
			return &m->entries[i];
	return NULL;
}

/* ---- initial values -------------------------------------------------------- */

static void fill(grad_t *dst, size_t n, grad_t value)
{
	for (size_t i = 0; i < n; i++)
		dst[i] = value;
}

void init_zero(const struct param_entry *e, size_t first, size_t n, grad_t *dst, uint64_t seed)
{
	(void)e, (void)first, (void)seed;
	fill(dst, n, 0);
}

void init_one(const struct param_entry *e, size_t first, size_t n, grad_t *dst, uint64_t seed)
{
	(void)e, (void)first, (void)seed;
	fill(dst, n, 1);
}

static void draw(const struct param_entry *e, size_t first, size_t n, grad_t *dst, uint64_t seed,
		 double sd)
{
	uint64_t stream = hash_name(e->name);

#pragma omp parallel for schedule(static)
	for (size_t i = 0; i < n; i++)
		dst[i] = (grad_t)(sd * rng_normal(seed, stream, first + i));
}

void init_normal(const struct param_entry *e, size_t first, size_t n, grad_t *dst, uint64_t seed)
{
	draw(e, first, n, dst, seed, 0.02);
}

void init_residual(const struct param_entry *e, size_t first, size_t n, grad_t *dst, uint64_t seed)
{
	draw(e, first, n, dst, seed, 0.02 / sqrt(NR_SUB));
}

void init_fanin(const struct param_entry *e, size_t first, size_t n, grad_t *dst, uint64_t seed)
{
	draw(e, first, n, dst, seed, 1 / sqrt(e->p->fan_in));
}

static void draw_uniform(const struct param_entry *e, size_t first, size_t n, grad_t *dst,
			 uint64_t seed, double most)
{
	uint64_t stream = hash_name(e->name);

#pragma omp parallel for schedule(static)
	for (size_t i = 0; i < n; i++)
		dst[i] = (grad_t)(most * (2 * rng_uniform(seed, stream, first + i) - 1));
}

void init_uniform(const struct param_entry *e, size_t first, size_t n, grad_t *dst, uint64_t seed)
{
	draw_uniform(e, first, n, dst, seed, 1 / sqrt(e->p->fan_in));
}

/* Glorot and Bengio 2010; of a tensor of three dimensions matrix by matrix. */
void init_xavier(const struct param_entry *e, size_t first, size_t n, grad_t *dst, uint64_t seed)
{
	const int *last = e->p->dims + e->p->ndim - 2;

	draw_uniform(e, first, n, dst, seed, sqrt(6.0 / (last[0] + last[1])));
}

/* In pieces: a host copy of all parameters would not stay within the plan. */
void model_init_params(struct model *m, grad_t *master, uint64_t seed)
{
	for (int i = 0; i < m->nr_entries; i++) {
		const struct param_entry *e = &m->entries[i];
		size_t most = e->p->flags & INIT_WHOLE ? e->numel : MIN(e->numel, (size_t)PIECE);
		grad_t *host = xmalloc(most * sizeof(*host));

		for (size_t at = 0, n; at < e->numel; at += n) {
			n = MIN(e->numel - at, most);
			e->p->init(e, at, n, host, seed);
			model_put(m, master, e, at, n, host);
		}
		free(host);
	}
}

/* ---- host and device ------------------------------------------------------- */

/* Whether weights in param_t are rounded copies of grad_t. */
static bool rounded(const struct param_entry *e)
{
	return sizeof(param_t) != sizeof(grad_t) && !(e->p->flags & WIDE);
}

void model_put(struct model *m, grad_t *master, const struct param_entry *e, size_t first,
	       size_t n, const grad_t *host)
{
	param_t *w = m->w + e->offset;

	if (master)
		arch_put(master + e->offset + first, host, n * sizeof(*host));
	if (!rounded(e)) {
		arch_put((grad_t *)w + first, host, n * sizeof(*host));
		return;
	}
	for (size_t at = 0, k; at < n; at += k) {
		k = MIN(n - at, (size_t)PIECE);
		arch_put(m->stage, host + at, k * sizeof(*host));
		k_cast(w + first + at, m->stage, k);
	}
}

void model_get(const struct model *m, const grad_t *master, const struct param_entry *e,
	       size_t first, size_t n, grad_t *host)
{
	const param_t *w = m->w + e->offset;

	if (master || !rounded(e)) {
		const grad_t *from = master ? master + e->offset : (const grad_t *)w;

		arch_get(host, from + first, n * sizeof(*host));
		return;
	}
	assert(n <= PIECE);
	k_widen(m->stage, w + first, n);
	arch_get(host, m->stage, n * sizeof(*host));
}
