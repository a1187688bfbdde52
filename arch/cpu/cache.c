// SPDX-License-Identifier: MIT
/*
 * Rows of decode state: written one position at a time, or from a forward.
 */
#include <string.h>

#include "kernels.h"

enum { SPLIT_MIN = 16384 };	/* elements below which threads cost more than they gain */

/* Row @pos of sequence @i. */
static act_t *cache_row(const struct cache_rows *c, int i, int pos)
{
	return c->base + i * c->seq + (c->slots ? pos % c->slots : pos) * c->row;
}

void k_cache_put(const struct cache_rows *c, const act_t *src, long ld, const int32_t *pos, int b)
{
	for (int i = 0; i < b; i++)
		memcpy(cache_row(c, i, pos[i]), src + i * ld, c->width * sizeof(*src));
}

/* Rows that a later one would overwrite in a ring are left out. */
void k_cache_fill(const struct cache_rows *c, const act_t *src, long ld, const int32_t *len, int b,
		  int t)
{
#pragma omp parallel for collapse(2) schedule(static) if ((long)b * t * c->width >= SPLIT_MIN)
	for (int i = 0; i < b; i++)
		for (int u = 0; u < t; u++)
			if (u < len[i] && (!c->slots || u >= len[i] - c->slots))
				memcpy(cache_row(c, i, u), src + ((long)i * t + u) * ld,
				       c->width * sizeof(*src));
}

void k_last_rows(act_t *dst, const act_t *src, const int32_t *len, int b, int t, int c)
{
	for (int i = 0; i < b; i++)
		memcpy(dst + (long)i * c, src + ((long)i * t + len[i] - 1) * c, c * sizeof(*dst));
}
