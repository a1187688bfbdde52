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

#include "kernels.h"
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

int accum_leaf(const struct accum *a)
{
	int i = 0;

	while (i < a->nr && in_use(a, i))
		i++;
	assert(i < a->nr);
	return i;
}

int accum_push(struct accum *a, int leaf, struct accum_merge merges[ACCUM_MAX_SLOTS])
{
	int j;

	for (j = 0; j < a->nr && a->slot[j] >= 0; j++) {
		merges[j] = (struct accum_merge){ .older = a->slot[j], .newer = leaf };
		leaf = a->slot[j];
		a->slot[j] = -1;
	}
	assert(j < a->nr);
	a->slot[j] = leaf;
	return j;
}

int accum_fold(struct accum *a, struct accum_merge merges[ACCUM_MAX_SLOTS], int *sum)
{
	int nr = 0;

	*sum = -1;
	for (int j = 0; j < a->nr; j++) {
		if (a->slot[j] < 0)
			continue;
		if (*sum >= 0)
			merges[nr++] = (struct accum_merge){ .older = a->slot[j], .newer = *sum };
		*sum = a->slot[j];
	}
	assert(*sum >= 0);
	accum_drop(a);
	return nr;
}

void accum_merge(const struct accum *a, struct accum_merge x, size_t offset, size_t n)
{
	k_sum_grad(a->buf[x.older] + offset, a->buf[x.newer] + offset, n);
}

void accum_drop(struct accum *a)
{
	for (int j = 0; j < a->nr; j++)
		a->slot[j] = -1;
}
