/* SPDX-License-Identifier: MIT */
/**
 * DOC: routing: sparse rows of the attention matrix
 *
 * The rules of kernels.h hold.
 */
#ifndef TENON_KERNELS_ROUTE_H
#define TENON_KERNELS_ROUTE_H

#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum route_mode { ROUTE_NONE, ROUTE_TOPK, ROUTE_RMS };

/**
 * struct route - sparsified attention rows R^, detached
 * @a: what is needed to recompute gamma * P: q, k, lse, gamma, scales and strides
 *	(v and o are not used)
 * @nr: row sets: 1 (heads averaged) or heads (each its own, no 1/H)
 * @mode: none, topk, rms
 * @topk: entries kept per row (topk)
 * @tau: rms: entries >= tau * rms of the visible entries are kept
 * @normalize: divide a row by max(its sum, 1e-8)
 * @index: [b*t][nr][topk] u inside the sequence, ascending; -1 past the last (topk)
 * @weight: [b*t][nr][topk] the kept and normalised entry
 * @thr: [b*t][nr] none, rms: smallest entry kept (none: 0)
 * @inv: [b*t][nr] none, rms: factor of kept entries (1 without @normalize)
 *
 * The arrays belong to the writer's saved activations. Ties in topk: the smaller
 * u wins.
 */
struct route {
	struct attn a;
	int nr;
	enum route_mode mode;
	int topk;
	double tau;
	bool normalize;
	int32_t *index;
	acc_t *weight;
	acc_t *thr, *inv;
};

/**
 * k_route_scratch() - bytes of scratch that the route kernels want
 * @b: sequences
 * @t: positions
 * @nr: row sets
 * @topk: entries per row, 0 for the modes none and rms
 *
 * Each arch at most ROUTE_SCRATCH_MAX(): what mixers plan.
 */
size_t k_route_scratch(int b, int t, int nr, int topk);

/* lists of the transposed gather: for each u where its entries begin, then the entries */
#define ROUTE_SCRATCH_MAX(b, t, nr, topk) \
	((topk) ? 4 * (size_t)(nr) * ((size_t)(b) * (t) * ((topk) + 1) + (b)) : 0)

/**
 * k_route_build() - select: fills index and weight (topk) or thr and inv
 * @r: with everything but these arrays' contents set
 * @scratch: k_route_scratch() bytes
 *
 * Recomputes scores tile by tile; neither arch holds a T x T buffer.
 */
void k_route_build(const struct route *r, void *scratch);

/**
 * struct route_rows - one side of a gather, as up to two groups of columns
 * @x: [b*t][width]
 * @ld: row stride of x
 * @width: columns
 * @wide: [b*t][wide_width] acc_t columns behind them, or NULL
 * @wide_ld: its row stride
 * @wide_width: columns of it
 *
 * Row set s routes columns [s width / nr, (s + 1) width / nr); wide columns need nr 1.
 */
struct route_rows {
	act_t *x;
	long ld;
	int width;
	acc_t *wide;
	long wide_ld;
	int wide_width;
};

/**
 * k_route_gather_fwd() - y_t = alpha sum_u R^_{t,u} x_u + beta y_t
 * @r: built
 * @y: width and wide_width together are @width
 * @x: [b*t][width], row stride @ldx
 * @ldx: row stride of x
 * @width: columns of x
 * @alpha: factor
 * @beta: 0 overwrites
 * @scratch: k_route_scratch() bytes
 *
 * Rows of R^ that must be recomputed are computed once for all columns.
 */
void k_route_gather_fwd(const struct route *r, const struct route_rows *y, const act_t *x,
			long ldx, int width, double alpha, double beta, void *scratch);

/**
 * k_route_gather_bwd() - dx_u = alpha sum_t R^_{t,u} dy_t + beta dx_u
 * @dx: [b*t][width], row stride @lddx
 * @dy: width and wide_width together are @width
 *
 * Deterministic: pairs stably sorted by u, summed in ascending t.
 */
void k_route_gather_bwd(const struct route *r, act_t *dx, long lddx, const struct route_rows *dy,
			int width, double alpha, double beta, void *scratch);

/**
 * struct route_step - decode: one dense row R^ over u <= pos for each sequence and row set
 * @b: sequences
 * @nr, @mode, @topk, @tau, @normalize: as in struct route
 * @pos: [b] device: entries 0..pos[i] are visible
 * @row: [b][nr][row_stride]
 * @row_stride: elements between rows
 */
struct route_step {
	int b, nr;
	enum route_mode mode;
	int topk;
	double tau;
	bool normalize;
	const int32_t *pos;
	acc_t *row;
	long row_stride;
};

/**
 * k_route_step() - sparsify decode rows
 * @r: row is written
 * @p: [b][heads][p_stride] gamma * P from k_attn_step()
 * @p_stride: elements between its rows
 * @heads: heads of p; averaged where nr is 1
 */
void k_route_step(const struct route_step *r, const acc_t *p, long p_stride, int heads);

/**
 * k_route_gather_step() - y_i = alpha sum_{u <= pos[i]} row_{i,u} x_{i,u} + beta y_i
 * @r: b, nr, pos, row and row_stride are used
 * @y: [b], width and wide_width together are @x's width
 * @x: cached rows; slots 0
 */
void k_route_gather_step(const struct route_step *r, const struct route_rows *y,
			 const struct cache_rows *x, double alpha, double beta);

#ifdef __cplusplus
}
#endif

#endif
