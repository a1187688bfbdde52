/* SPDX-License-Identifier: MIT */
/**
 * DOC: tiles of attention rows
 *
 * Building a route and gathering along one recompute gamma * P by the same
 * function on the same tiles, so that a threshold selects the same entries each
 * time.
 */
#ifndef TENON_CPU_ROUTE_H
#define TENON_CPU_ROUTE_H

#include "attn.h"
#include "kernels_route.h"

/**
 * struct route_tile - one tile of rows of one row set, and its scratch
 * @p: [TILE] rows t0 + t: gamma * P of u0 + u, heads averaged where nr is 1; 0
 *	where u > t and behind the last key
 * @s: [TILE] scores of one head
 * @e: [TILE] reciprocal term
 * @kt: [dk][TILE] keys
 * @qt: [dk][TILE] queries of the keys' positions (reciprocal term)
 * @left: tile_left(TILE, dk)
 * @rest: what the caller asked for
 */
struct route_tile {
	acc_t (*p)[TILE], (*s)[TILE], (*e)[TILE];
	acc_t *kt, *qt, *left, *rest;
};

/** route_tile_open() - scratch of this thread, with @rest elements for the caller */
void route_tile_open(struct route_tile *w, const struct route *r, size_t rest);

/** route_tile_fill() - p of sequence @i, row set @set, queries @t0, keys @u0 <= t0 */
void route_tile_fill(struct route_tile *w, const struct route *r, int i, int set, int t0, int u0);

/** route_row() - number of a row in index, weight, thr and inv */
static inline long route_row(const struct route *r, int i, int set, int t)
{
	return ((long)i * r->a.t + t) * r->nr + set;
}

/**
 * sums_begin() - where beta times a row of @n results, and what is added to it, is summed
 * @out: the row: acc_t where @size says so, else act_t
 * @buf: [n], used where @out is rounded
 *
 * Returns: @out itself or @buf; of beta 0, zeros.
 */
static inline acc_t *sums_begin(void *out, size_t size, acc_t *buf, int n, acc_t beta)
{
	acc_t *y = size == sizeof(acc_t) ? out : buf;
	const act_t *x = out;

	for (int c = 0; y == out && c < n; c++)
		y[c] = beta == 0 ? 0 : beta * y[c];
	for (int c = 0; y != out && c < n; c++)
		y[c] = beta == 0 ? 0 : beta * load(x[c]);
	return y;
}

/** sums_end() - round them to @out, if they are not there already */
static inline void sums_end(void *out, const acc_t *sums, int n)
{
	if (sums != out)
		store_row(out, sums, n);
}

/** route_sort() - order a list of @n entries by index */
void route_sort(acc_t *weight, int32_t *index, int n);

/** route_factor() - of a row's kept entries, from their sum */
static inline acc_t route_factor(bool normalize, double sum)
{
	return normalize ? 1 / MAX(sum, 1e-8) : 1;
}

#endif
