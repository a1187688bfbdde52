/* SPDX-License-Identifier: MIT */
/**
 * DOC: a block of a linear recurrence
 *
 * What forward and backward share: the operands of one head at ROWS positions, in acc_t,
 * rows and columns that are not there as 0 with a decay of 1, so that nothing below asks
 * how many there are.
 */
#ifndef TENON_CPU_LINATTN_H
#define TENON_CPU_LINATTN_H

#include <math.h>

#include "kernels_linattn.h"
#include "tile.h"

enum { ROWS = 16 };	/* positions of a block: a multiple of LANES */

/**
 * struct linblock - one block of one head
 * @kw, @vw: columns of a row of dk or dv: whole vectors
 * @q: [ROWS][kw] times scale
 * @k: [ROWS][kw]
 * @v: [ROWS][vw]
 * @alpha: [ROWS][kw] decay at each position
 * @from: [ROWS][kw] product of alpha from the first position to this one, both included
 * @to: [ROWS][kw] of those behind this one
 * @qe: [ROWS][kw] q from
 * @kf: [ROWS][kw] k to
 * @end: [kw] of the whole block: the last row of @from
 * @kt: [kw][ROWS] k transposed
 * @a: [ROWS][ROWS] A_tu, 0 above the diagonal
 */
struct linblock {
	int kw, vw;
	acc_t *q, *k, *v, *alpha, *from, *to, *qe, *kf, *end, *kt;
	acc_t (*a)[ROWS];
};

/** linblock_elems() - of scratch that a block takes */
static inline size_t linblock_elems(const struct linattn *a)
{
	return ROWS * (8 * tile_width(a->dk) + tile_width(a->dv) + ROWS);
}

/** linblock_place() - its buffers into @scratch; returns what is behind them */
acc_t *linblock_place(struct linblock *s, const struct linattn *a, acc_t *scratch);

/** linattn_head() - which head of an operand head @h uses */
static inline int linattn_head(const struct linattn *a, unsigned int operand, int h)
{
	return a->shared & operand ? h / a->group : h;
}

/* One number for all columns. */
static inline acc_t decay_of_head(const struct linattn *a, int h)
{
	return a->decay == LINATTN_FIXED ? 1 - (acc_t)exp2(-5 - h) : 1;
}

/* g of head @h in a row; NULL where nothing decays by it */
static inline const acc_t *decay_at(const struct linattn *a, long row, int h)
{
	if (a->decay > LINATTN_SCALAR)
		return NULL;
	return a->g + row * a->g_row + linattn_head(a, LINATTN_G, h) * a->g_head;
}

/** linattn_rows() - positions of the block at @t0 that stand before @end */
static inline int linattn_rows(int t0, int end)
{
	return MIN(ROWS, end - t0);
}

/** linattn_load() - dst[ROWS][width] = @n rows of @cols columns of activations, the rest 0 */
void linattn_load(acc_t *dst, int width, const act_t *src, long ld, int n, int cols);

/** linblock_load_keys() - k, v, alpha, from, to, kf of n positions from @t0 on */
void linblock_load_keys(struct linblock *s, const struct linattn *a, int i, int h, int t0, int n);

/** linblock_load_queries() - then q, qe, kt and a */
void linblock_load_queries(struct linblock *s, const struct linattn *a, int i, int h, int t0,
			   int n);

#endif
