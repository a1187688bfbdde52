/* SPDX-License-Identifier: MIT */
/**
 * DOC: attention kernels
 *
 * The rules of kernels.h hold.
 */
#ifndef TENON_KERNELS_ATTN_H
#define TENON_KERNELS_ATTN_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * struct attn - causal softmax attention, blocked, with an online softmax
 * @b: sequences
 * @t: positions
 * @heads: query heads
 * @group: query heads that share a key and a value head, 1 for each its own; divides
 *	@heads (Ainslie et al. 2023, arXiv 2305.13245)
 * @dk: width of a query and a key
 * @dv: width of a value and an output
 * @q: element (i, h, e) at q[i * q_row + h * q_head + e], i = sequence * t + position
 * @q_row: row stride of q
 * @q_head: head stride of q
 * @k: as q, for key head h / group
 * @k_row: row stride of k
 * @k_head: head stride of k; 0: one key for all heads, whatever @group is
 * @v: as k, width dv; v_head 0: one value for all heads
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
	int b, t, heads, group, dk, dv;
	const act_t *q;
	long q_row, q_head;
	const act_t *k;
	long k_row, k_head;
	const act_t *v;
	long v_row, v_head;
	act_t *o;
	long o_row, o_head;
	acc_t *lse;
	const acc_t *gamma;
	double scale, ra_scale;
	int ra_window;
};

/** k_attn_fwd() - o and lse */
void k_attn_fwd(const struct attn *a);

/**
 * k_attn_bwd() - gradients of k_attn_fwd()
 * @a: as in forward, with its o and lse
 * @dq: strides of q
 * @dk: strides of k; keys that heads share sum over them in a fixed order
 * @dv: strides of v; the same
 * @dgamma: [b*t][heads], written where a->gamma and @dgamma are not NULL
 * @d_o: gradient of o, its strides
 * @delta: [b*t][heads] scratch: <d_o, o>; behind it ATTN_SUMS(w) elements a row, w the
 *	widths of q, k and v together, for sums of what is rounded
 *
 * dq, dk and dv are overwritten (their rows' dk or dv elements per head only), so
 * they may be parts of one [b*t][3C] buffer.
 */
void k_attn_bwd(const struct attn *a, act_t *dq, act_t *dk, act_t *dv, acc_t *dgamma,
		const act_t *d_o, acc_t *delta);

/* none where an activation holds its sum, or an arch holds sums on the chip */
#define ATTN_SUMS(w) \
	(sizeof(act_t) == sizeof(acc_t) || IS_ENABLED(CONFIG_ARCH_CUDA) ? 0 : (w))

/**
 * struct attn_step - one query per sequence against its cache
 * @b: sequences
 * @heads: query heads
 * @group: as in struct attn
 * @dk: width of query and key
 * @dv: width of value and output
 * @t_max: positions that a cache can hold
 * @pos: [b] device: position of the query of each sequence; keys 0..pos[i] are in its cache
 * @q: query of head h of sequence i at q + i * q_row + h * dk
 * @q_row: row stride of q
 * @k: key u of sequence i at k + i * cache_stride + u * k_row + (h / group) * k_head
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
 * @route: [b][heads][route_stride] gets gamma * P for u <= pos[i], or NULL
 * @route_stride: elements between its rows
 */
struct attn_step {
	int b, heads, group, dk, dv, t_max;
	const int32_t *pos;
	const act_t *q;
	long q_row;
	const act_t *k;
	long k_row, k_head;
	const act_t *v;
	long v_row, v_head;
	long cache_stride;
	act_t *o;
	const acc_t *gamma;
	double scale, ra_scale;
	int ra_window;
	const act_t *ring;
	acc_t *route;
	long route_stride;
};

/** k_attn_step() - o (and route); the cache is read once */
void k_attn_step(const struct attn_step *a);

#ifdef __cplusplus
}
#endif

#endif
