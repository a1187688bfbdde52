/* SPDX-License-Identifier: MIT */
/**
 * DOC: attention kernels, and the routing that recomputes their rows
 *
 * The rules of kernels.h hold.
 */
#ifndef TENON_KERNELS_ATTN_H
#define TENON_KERNELS_ATTN_H

#include "types.h"

/* ---- attn ---------------------------------------------------------------- */

/**
 * struct attn - causal softmax attention, blocked, with an online softmax
 * @b: sequences
 * @t: positions
 * @heads: query heads
 * @dk: width of a query and a key
 * @dv: width of a value and an output
 * @q: element (i, h, e) at q[i * q_row + h * q_head + e], i = sequence * t + position
 * @q_row: row stride of q
 * @q_head: head stride of q
 * @k: as q; k_head 0: one key for all heads
 * @k_row: row stride of k
 * @k_head: head stride of k
 * @v: as q, width dv; v_head 0: one value for all heads
 * @v_row: row stride of v
 * @v_head: head stride of v
 * @o: output, as q, width dv
 * @o_row: row stride of o
 * @o_head: head stride of o
 * @lse: [b*t][heads] log-sum-exp of the scaled scores
 * @gamma: [b*t][heads] factor of each head's output, or NULL for 1
 * @scale: of the scores, 1/sqrt(width)
 * @ra_scale: reciprocal term: s_{t,u} += ra_scale <q_u, k_t> for 0 <= t-u <= ra_window;
 *	0 = off. RA-MLA: alpha_ra / sqrt(L).
 * @ra_window: its window
 *
 *     s_{h,t,u} = scale <q_{t,h}, k_u> (+ reciprocal term), u <= t
 *     o_{t,h} = gamma_{t,h} sum_u softmax_u(s_{h,t,u}) v_u
 *
 * Online softmax: Milakov and Gimelshein 2018, arXiv 1805.02867; blocking: Dao et
 * al. 2022, arXiv 2205.14135.
 */
struct attn {
	int b, t, heads, dk, dv;
	const act_t *q;
	long q_row, q_head;
	const act_t *k;
	long k_row, k_head;
	const act_t *v;
	long v_row, v_head;
	act_t *o;
	long o_row, o_head;
	acc_t *lse;
	const act_t *gamma;
	double scale, ra_scale;
	int ra_window;
};

/** k_attn_fwd() - o and lse */
void k_attn_fwd(const struct attn *a);

/**
 * k_attn_bwd() - gradients of k_attn_fwd()
 * @a: as in forward, with its o and lse
 * @dq: strides of q
 * @dk: strides of k; shared keys sum over heads in a fixed order
 * @dv: strides of v; the same
 * @dgamma: [b*t][heads], written where a->gamma and @dgamma are not NULL
 * @d_o: gradient of o, its strides
 * @delta: [b*t][heads] scratch: <d_o, o>
 *
 * dq, dk and dv are overwritten (their rows' dk or dv elements per head only), so
 * they may be parts of one [b*t][3C] buffer.
 */
void k_attn_bwd(const struct attn *a, act_t *dq, act_t *dk, act_t *dv, act_t *dgamma,
		const act_t *d_o, acc_t *delta);

/**
 * struct attn_step - one query per sequence against its cache
 * @b: sequences
 * @heads: query heads
 * @dk: width of query and key
 * @dv: width of value and output
 * @pos: position of the query; keys 0..pos are in the cache
 * @q: [b][heads][dk]
 * @k: key u of sequence i at k + i * cache_stride + u * k_row + h * k_head
 * @k_row: row stride of k
 * @k_head: 0 for one key shared by the heads
 * @v: as k
 * @v_row: row stride of v
 * @v_head: head stride of v
 * @cache_stride: elements from sequence to sequence
 * @o: [b][heads][dv]
 * @gamma: [b][heads] or NULL
 * @scale: of the scores
 * @ra_scale: reciprocal term, 0 = off
 * @ra_window: its window W
 * @ring: query heads of position u of sequence i at
 *	ring + i * cache_stride + (u % (W + 1)) * heads * dk; holds pos itself too
 * @route: [b][heads][route_stride] gets gamma * P for u <= pos, or NULL
 * @route_stride: elements between its rows
 */
struct attn_step {
	int b, heads, dk, dv, pos;
	const act_t *q;
	const act_t *k;
	long k_row, k_head;
	const act_t *v;
	long v_row, v_head;
	long cache_stride;
	act_t *o;
	const act_t *gamma;
	double scale, ra_scale;
	int ra_window;
	const act_t *ring;
	act_t *route;
	long route_stride;
};

/** k_attn_step() - o (and route); the cache is read once */
void k_attn_step(const struct attn_step *a);

/* ---- route: sparse rows of the attention matrix -------------------------- */

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
 * @row: step: [b][nr][row_stride] the dense row R^ over u <= pos, else NULL
 * @row_stride: elements between rows
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
	act_t *weight;
	acc_t *thr, *inv;
	act_t *row;
	long row_stride;
};

/**
 * k_route_scratch() - elements of scratch that the route kernels want
 * @b: sequences
 * @t: positions
 * @nr: row sets
 * @topk: entries per row, 0 for the modes none and rms
 *
 * In every arch at most nr * (b * t * (topk + 1) + b) for topk and 0 for the other
 * modes: that is what mixers plan (model/routing.h). On the cpu it holds the lists of
 * the transposed gather: for each sequence and row set t + 1 int32, where the
 * entries of each u begin, then the entries, at most t * topk int32: t' * topk + slot,
 * sorted by u, ascending in t'.
 */
size_t k_route_scratch(int b, int t, int nr, int topk);

/**
 * k_route_build() - select: fills index and weight (topk) or thr and inv
 * @r: with everything but these arrays' contents set
 * @scratch: k_route_scratch() elements
 *
 * Recomputes scores tile by tile; neither arch holds a T x T buffer.
 */
void k_route_build(const struct route *r, act_t *scratch);

/**
 * k_route_gather_fwd() - y_t = alpha sum_u R^_{t,u} x_u + beta y_t
 * @r: built
 * @y: [b*t][width], row stride @ldy
 * @ldy: row stride of y
 * @x: [b*t][width], row stride @ldx
 * @ldx: row stride of x
 * @width: row set s routes columns [s width / nr, (s + 1) width / nr)
 * @alpha: factor
 * @beta: 0 overwrites
 * @scratch: k_route_scratch() elements
 */
void k_route_gather_fwd(const struct route *r, act_t *y, long ldy, const act_t *x, long ldx,
			int width, double alpha, double beta, act_t *scratch);

/**
 * k_route_gather_bwd() - dx_u = alpha sum_t R^_{t,u} dy_t + beta dx_u
 *
 * Deterministic: pairs stably sorted by u, summed in ascending t.
 */
void k_route_gather_bwd(const struct route *r, act_t *dx, long ldx, const act_t *dy, long ldy,
			int width, double alpha, double beta, act_t *scratch);

/**
 * k_route_step() - sparsify a decode row
 * @r: nr, mode, topk, tau, normalize, row, row_stride; row is written
 * @p: [b][heads][p_stride] gamma * P from k_attn_step()
 * @p_stride: elements between its rows
 * @b: sequences
 * @heads: heads of p; averaged where nr is 1
 * @pos: entries 0..pos are visible
 */
void k_route_step(const struct route *r, const act_t *p, long p_stride, int b, int heads, int pos);

/**
 * k_route_gather_step() - y_i = alpha sum_{u <= pos} row_{i,u} x_{i,u} + beta y_i
 * @r: nr, row, row_stride
 * @y: [b][width], row stride @ldy
 * @ldy: row stride of y
 * @x: x_{i,u} at x + i * x_seq + u * x_row
 * @x_seq: stride from sequence to sequence
 * @x_row: stride from position to position
 */
void k_route_gather_step(const struct route *r, act_t *y, long ldy, const act_t *x, long x_seq,
			 long x_row, int b, int width, int pos, double alpha, double beta);

#endif
