/* SPDX-License-Identifier: MIT */
/**
 * DOC: score tiles
 *
 * What forward, backward and routing of attention share: addresses, and tiles of
 * scores recomputed from q and k. A tile has TILE queries t0.. and TILE keys u0..,
 * both multiples of TILE, u0 <= t0.
 */
#ifndef TENON_CPU_ATTN_H
#define TENON_CPU_ATTN_H

#include "kernels.h"
#include "tile.h"

/** attn_blocks() - tiles along a sequence */
static inline int attn_blocks(const struct attn *a)
{
	return (a->t + TILE - 1) / TILE;
}

/** attn_rows() - positions in the tile that starts at @pos */
static inline int attn_rows(const struct attn *a, int pos)
{
	return MIN(TILE, a->t - pos);
}

/** attn_q() - offset of the query of sequence @i, position @pos, head @h; dq too */
static inline long attn_q(const struct attn *a, int i, int pos, int h)
{
	return ((long)i * a->t + pos) * a->q_row + h * a->q_head;
}

/** attn_k() - the same for the key that head @h uses */
static inline long attn_k(const struct attn *a, int i, int pos, int h)
{
	return ((long)i * a->t + pos) * a->k_row + h / a->group * a->k_head;
}

/** attn_v() - the same for the value that head @h uses */
static inline long attn_v(const struct attn *a, int i, int pos, int h)
{
	return ((long)i * a->t + pos) * a->v_row + h / a->group * a->v_head;
}

/** attn_sharers() - heads with one key, or value, whose head stride is @stride */
static inline int attn_sharers(int heads, int group, long stride)
{
	return stride ? group : heads;
}

/** attn_first_k() - is head @h the first of those that share its key? */
static inline bool attn_first_k(const struct attn *a, int h)
{
	return h % attn_sharers(a->heads, a->group, a->k_head) == 0;
}

/** attn_first_v() - the same for values */
static inline bool attn_first_v(const struct attn *a, int h)
{
	return h % attn_sharers(a->heads, a->group, a->v_head) == 0;
}

/** attn_o() - the same for outputs */
static inline long attn_o(const struct attn *a, int i, int pos, int h)
{
	return ((long)i * a->t + pos) * a->o_row + h * a->o_head;
}

/** attn_stat() - offset of a value per position and head: lse, gamma, delta */
static inline long attn_stat(const struct attn *a, int i, int pos, int h)
{
	return ((long)i * a->t + pos) * a->heads + h;
}

/** attn_in_band() - does the reciprocal term touch this tile? */
static inline bool attn_in_band(const struct attn *a, int t0, int u0)
{
	return a->ra_scale != 0 && t0 - (u0 + TILE - 1) <= a->ra_window;
}

/**
 * attn_band_range() - columns u0 + lo <= u < u0 + hi of the band in row t
 * @nu: keys of the tile
 */
static inline void attn_band_range(const struct attn *a, int t, int u0, int nu, int *lo, int *hi)
{
	*lo = MAX(0, t - a->ra_window - u0);
	*hi = MIN(nu, t - u0 + 1);
}

/**
 * attn_scores() - s[t][u] of one head, with the reciprocal term
 * @s: [TILE][TILE]; entries u > t hold anything
 * @i: sequence
 * @h: head
 * @kt: [dk][TILE], the tile's keys transposed, times scale
 * @qt: [dk][TILE] scratch (reciprocal term)
 * @e: [TILE][TILE] scratch (reciprocal term)
 * @left: tile_left(TILE, dk) scratch
 *
 * The bits of an entry depend on its query and key alone.
 */
void attn_scores(acc_t (*s)[TILE], const struct attn *a, int i, int h, int t0, int u0,
		 const acc_t *kt, acc_t *qt, acc_t (*e)[TILE], acc_t *left);

#endif
