// SPDX-License-Identifier: MIT
/*
 * Accumulation of gradients as a binary counter.
 *
 * Leaf i is the gradient of micro-batch i. Slot j is empty or holds the sum of
 * 2^j consecutive leaves; a new leaf that meets a full slot merges into it
 * (older + newer) and moves on to the next slot, as a carry does. The shape of
 * the sum depends on the number of leaves alone, so that any split of a power
 * of two of them over ranks gives the same bits.
 */
#include <assert.h>

#include "optim.h"

int accum_slots(int n)
{
	int slots = 1;

	while (n >>= 1)
		slots++;
	return slots;
}

void accum_place(struct accum *a, int nr, size_t elems, grad_t *mem)
{
	assert(nr > 0 && nr <= ACCUM_MAX_SLOTS);
	a->nr = nr;
	a->elems = elems;
	for (int i = 0; i < nr; i++)
		a->buf[i] = mem + i * elems;
	accum_drop(a);
}

static bool in_use(const struct accum *a, int buffer)
{
	for (int j = 0; j < a->nr; j++)
		if (a->slot[j] == buffer)
			return true;
	return false;
}

grad_t *accum_leaf(struct accum *a)
{
	int i = 0;

	while (i < a->nr && in_use(a, i))
		i++;
	assert(i < a->nr);
	return a->buf[i];
}

void accum_push(struct accum *a, grad_t *leaf)
{
	int buffer = 0, j;

	while (a->buf[buffer] != leaf)
		buffer++;
	for (j = 0; j < a->nr && a->slot[j] >= 0; j++) {
		k_sum_grad(a->buf[a->slot[j]], a->buf[buffer], a->elems);
		buffer = a->slot[j];
		a->slot[j] = -1;
	}
	assert(j < a->nr);
	a->slot[j] = buffer;
}

grad_t *accum_fold(struct accum *a)
{
	int sum = -1;

	for (int j = 0; j < a->nr; j++) {
		if (a->slot[j] < 0)
			continue;
		if (sum >= 0)
			k_sum_grad(a->buf[a->slot[j]], a->buf[sum], a->elems);
		sum = a->slot[j];
	}
	assert(sum >= 0);
	accum_drop(a);
	return a->buf[sum];
}

void accum_drop(struct accum *a)
{
	for (int j = 0; j < a->nr; j++)
		a->slot[j] = -1;
}
