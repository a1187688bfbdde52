// SPDX-License-Identifier: MIT
/*
 * A batch on its way to the device: tokens, targets, how many of these are scored, and
 * the order in which the embedding's gradient is summed.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "util.h"

enum { RADIX_BITS = 11, RADIX = 1 << RADIX_BITS };

/*
 * Stable sort of the rows 0..n-1 by their token, least significant digit first, from
 * one half of @order [2 n] into the other. Returns the half that is sorted.
 */
static const int32_t *sort_rows(const int32_t *tok, int32_t *order, int n)
{
	int32_t *from = order, *to = order + n, *swap;

	for (int i = 0; i < n; i++)
		from[i] = i;
	for (int shift = 0; (CONFIG_VOCAB_SIZE - 1) >> shift; shift += RADIX_BITS) {
		int32_t start[RADIX + 1] = { 0 };

		for (int i = 0; i < n; i++)
			start[(tok[i] >> shift) % RADIX + 1]++;
		for (int i = 0; i < RADIX; i++)
			start[i + 1] += start[i];
		for (int i = 0; i < n; i++)
			to[start[(tok[from[i]] >> shift) % RADIX]++] = from[i];
		swap = from;
		from = to;
		to = swap;
	}
	return from;
}

static void put_order(struct model *m, const int32_t *tok, int n)
{
	int32_t *order = xmalloc(2 * (size_t)n * sizeof(*order));

	arch_put(m->input->order, sort_rows(tok, order, n), n * sizeof(*order));
	free(order);
}

static void put_targets(struct model *m, const int32_t *target, int n)
{
	int32_t scored = 0;

	for (int i = 0; i < n; i++)
		scored += target[i] >= 0;
	scored = MAX(scored, 1);
	arch_put(m->input->target, target, n * sizeof(*target));
	arch_put(&m->input->scored, &scored, sizeof(scored));
}

void model_load(struct model *m, const struct batch *x)
{
	int n = x->b * x->t;

	m->b = x->b;
	m->t = x->t;
	arch_put(m->input->tok, x->tok, n * sizeof(*x->tok));
	if (x->target)
		put_targets(m, x->target, n);
	if (m->phase == PHASE_TRAIN)
		put_order(m, x->tok, n);
}

void model_draw(struct model *m, uint64_t seed, int64_t micro)
{
	struct draw draw = { seed, micro };

	m->drops = DROPOUT;
	arch_put(&m->input->draw, &draw, sizeof(draw));
}
