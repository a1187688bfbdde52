// SPDX-License-Identifier: MIT
/*
 * What tests/numbers.t and cuda.t ask of a build that routes: what it selects of one batch
 * (topk: lists; rms: thresholds), and every gradient, with the build's own selection or,
 * topk, with that of another one.
 *
 *	routes OUT TOKENS SEED B T [BUNDLE]
 *
 * OUT gets the build's own selection in any case; with a BUNDLE of another build, gradients
 * are those of BUNDLE's lists.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "checkpoint.h"
#include "kernels_route.h"
#include "model.h"
#include "safetensors.h"
#include "util.h"

static struct model m;
static struct route other[NR_SUB];	/* the lists of BUNDLE */

static const struct route *route_of(int s)
{
	return m.sub[s].from[TAP_ROUTE] >= 0 ? m.taps[s].value[TAP_ROUTE] : NULL;
}

static size_t rows(const struct route *r)
{
	return (size_t)m.b * m.t * r->nr;
}

static size_t entries(const struct route *r)
{
	return rows(r) * r->topk;
}

/* Inputs and targets of [b][t + 1] raw int32 tokens. */
static void load(const char *path, int b, int t)
{
	size_t size;
	const int32_t *file = (const void *)file_read(path, &size);
	int32_t *tok = xmalloc(sizeof(*tok) * b * t), *target = xmalloc(sizeof(*target) * b * t);

	if (!file || size != sizeof(*file) * b * (t + 1))
		die("routes: %s: %s, or another size", path, file_error(errno));
	for (int i = 0; i < b; i++) {
		memcpy(tok + i * t, file + i * (t + 1), sizeof(*tok) * t);
		memcpy(target + i * t, file + i * (t + 1) + 1, sizeof(*tok) * t);
	}
	model_load(&m, &(struct batch){ b, t, tok, target });
}

static void place(void)
{
	void *arena, *leaf;
	size_t bytes;

	model_layout(&m);
	bytes = model_place(&m, NULL, PHASE_TRAIN, 0, m.param_elems * sizeof(grad_t), NULL);
	arena = arch_alloc(bytes);
	model_place(&m, arena, PHASE_TRAIN, 0, m.param_elems * sizeof(grad_t), &leaf);
	m.dw = leaf;
}

/* Room for lists that sub-layer @s reads instead of its own; filled from @from. */
static void take_lists(struct st_file *from, int s)
{
	const struct route *own = route_of(s);
	char *index = xasprintf("route.%d.index", s), *weight = xasprintf("route.%d.weight", s);
	size_t n = entries(own);
	double *wide = xmalloc(n * sizeof(*wide));
	acc_t *narrow = xmalloc(n * sizeof(*narrow));
	int32_t *u = xmalloc(n * sizeof(*u));

	if (st_read(from, st_find(from, index), 0, u, n * sizeof(*u)) ||
	    st_read(from, st_find(from, weight), 0, wide, n * sizeof(*wide)))
		die("routes: the lists of sub-layer %d cannot be read", s);
	for (size_t i = 0; i < n; i++)
		narrow[i] = wide[i];
	other[s] = *own;
	other[s].index = arch_alloc(n * sizeof(*u));
	other[s].weight = arch_alloc(n * sizeof(*narrow));
	arch_put(other[s].index, u, n * sizeof(*u));
	arch_put(other[s].weight, narrow, n * sizeof(*narrow));
}

/* Forward again, detached taps as they were, but for the selection. */
static void replay(const char *bundle)
{
	static struct tap_values values[NR_SUB];
	struct st_file *from = st_open(bundle, NULL);

	if (!from)
		die("routes: %s cannot be read", bundle);
	memcpy(values, m.taps, sizeof(values));
	for (int s = 0; s < NR_SUB; s++)
		if (route_of(s) && route_of(s)->mode == ROUTE_TOPK) {
			take_lists(from, s);
			values[s].value[TAP_ROUTE] = &other[s];
		}
	st_close(from);
	m.replay = values;
	model_forward(&m, true);
}

/* Numbers of the device to a bundle. */
static void give(struct st_writer *st, const void *src, size_t bytes)
{
	void *p = xmalloc(bytes);

	arch_get(p, src, bytes);
	st_data(st, p, bytes);
	free(p);
}

/* @write: what was selected; else only the names */
static void selections(struct st_writer *st, const struct route *const *own, bool write)
{
	for (int s = 0; s < NR_SUB; s++) {
		int64_t shape[3] = { (int64_t)m.b * m.t };
		const struct route *r = own[s];

		if (!r)
			continue;
		shape[1] = r->nr;
		if (r->mode != ROUTE_TOPK) {
			if (write)
				give(st, r->thr, rows(r) * sizeof(*r->thr));
			else
				st_declare(st, xasprintf("route.%d.thr", s), REAL_NAME, 2, shape);
			continue;
		}
		shape[2] = r->topk;
		if (!write) {
			st_declare(st, xasprintf("route.%d.index", s), "I32", 3, shape);
			st_declare(st, xasprintf("route.%d.weight", s), REAL_NAME, 3, shape);
			continue;
		}
		give(st, r->index, entries(r) * sizeof(*r->index));
		give(st, r->weight, entries(r) * sizeof(*r->weight));
	}
}

int main(int argc, char **argv)
{
	const struct route *own[NR_SUB] = { };
	struct tensor_set set = { .prefix = "grad." };
	struct st_writer *st;
	grad_t loss;

	if (argc < 6)
		die("routes OUT TOKENS SEED B T [BUNDLE]");
	arch_init(0, 1);
	place();
	model_init_params(&m, NULL, atoi(argv[3]));
	load(argv[2], atoi(argv[4]), atoi(argv[5]));
	model_forward(&m, true);
	for (int s = 0; s < NR_SUB; s++)
		own[s] = route_of(s);
	if (argc > 6)
		replay(argv[6]);
	model_backward(&m, NULL, NULL);
	loss = model_loss(&m);
	set.buf = m.dw;
	st = st_create(argv[1]);
	if (!st)
		die("routes: %s: %s", argv[1], file_error(errno));
	st_meta(st, "config", config_text());
	st_declare(st, "loss", REAL_NAME, 1, &(int64_t){ 1 });
	selections(st, own, false);
	tensors_declare(st, &m, &set);
	st_data(st, &loss, sizeof(loss));
	selections(st, own, true);
	tensors_stream(st, &m, &set);
	if (st_finish(st, NULL, NULL))
		die("routes: %s cannot be written", argv[1]);
	return 0;
}
