// SPDX-License-Identifier: MIT
/*
 * Parameters: names, offsets in the flat buffers, initial values.
 */
#include <math.h>
#include <string.h>

#include "model.h"
#include "util.h"

bool param_exists(const struct param *p, unsigned int read)
{
	return param_numel(p) && (!p->if_read || (p->if_read & read));
}

size_t param_numel(const struct param *p)
{
	size_t n = 1;

	for (int i = 0; i < p->ndim; i++)
		n *= p->dims[i];
	return n;
}

size_t param_module_elems(const struct param *params, int nr, unsigned int read)
{
	size_t end = 0;

	for (int i = 0; i < nr; i++)
		if (param_exists(&params[i], read))
			end = MAX(end, params[i].offset / sizeof(param_t) + param_numel(&params[i]));
	return ROUND_UP(end, TENSOR_ALIGN / sizeof(param_t));
}

const struct param_entry *model_find(const struct model *m, const char *name)
{
	for (int i = 0; i < m->nr_entries; i++)
		if (!strcmp(m->entries[i].name, name))
			return &m->entries[i];
	return NULL;
}

static double init_sd(const struct param *p)
{
	switch (p->init) {
	case INIT_NORMAL:
		return 0.02;
	case INIT_RESIDUAL:
		return 0.02 / sqrt(NR_SUB);
	case INIT_FANIN:
		return 1 / sqrt(p->fan_in);
	default:
		return 0;
	}
}

void param_init(const struct param_entry *e, size_t first, size_t n, param_t *dst, uint64_t seed)
{
	uint64_t stream = hash_name(e->name);
	double sd = init_sd(e->p);

	if (e->p->init == INIT_ZERO || e->p->init == INIT_ONE) {
		for (size_t i = 0; i < n; i++)
			dst[i] = e->p->init == INIT_ONE;
		return;
	}
#pragma omp parallel for schedule(static)
	for (size_t i = 0; i < n; i++)
		dst[i] = (param_t)(sd * rng_normal(seed, stream, first + i));
}
