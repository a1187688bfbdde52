/* SPDX-License-Identifier: MIT */
/**
 * DOC: the weights of a model
 *
 * What stores and updates them sees tensors in flat buffers, and nothing of the stack
 * that they are of: it is compiled once for all configurations of one number type.
 */
#ifndef TENON_WEIGHTS_H
#define TENON_WEIGHTS_H

#include "param.h"

enum { PIECE = 1 << 18 };	/* elements of a tensor on their way to the host or back */

struct model;

/** model_nr_entries() - how many tensors it has */
int model_nr_entries(const struct model *m);

/** model_entry() - tensor @i, in buffer order */
const struct param_entry *model_entry(const struct model *m, int i);

/** model_elems() - elements of the flat buffers, padding included */
size_t model_elems(const struct model *m);

/** model_weights() - device [model_elems()] */
param_t *model_weights(const struct model *m);

/**
 * model_find() - entry by full name, NULL if there is none
 */
const struct param_entry *model_find(const struct model *m, const char *name);

/**
 * model_put() - elements [first, first + n) of a tensor from the host
 * @master: [model_elems()] of the device, or NULL: they go there unrounded
 * @host: [n]
 *
 * And into the weights, rounded where param_t is not grad_t. Asynchronous.
 */
void model_put(struct model *m, grad_t *master, const struct param_entry *e, size_t first,
	       size_t n, const grad_t *host);

/** model_get() - the same, at most PIECE, to the host, from @master where there is one; waits */
void model_get(const struct model *m, const grad_t *master, const struct param_entry *e,
	       size_t first, size_t n, grad_t *host);

#endif
