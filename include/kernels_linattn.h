/* SPDX-License-Identifier: MIT */
/**
 * DOC: linear recurrences
 *
 * The rules of kernels.h hold. Each head has a state S [dk][dv] in acc_t:
 *
 *     S_t = diag(alpha_t) S_(t-1) + k_t v_t^T,   o_t = scale S_t^T q_t
 *
 * Positions run in blocks of 16 through which the state passes. Inside a block
 *
 *     o_t = scale (q_t e_t)^T S + sum over u <= t of A_tu v_u,   A_tu = scale <q_t, w_tu k_u>
 *
 * where e_t, w_tu are products of alphas: no logarithms are summed, so that no exponent is
 * positive and no two long sums are subtracted. Yang et al. 2023, arXiv 2312.06635; with a
 * scalar alpha Dao and Gu 2024, arXiv 2405.21060.
 *
 * Beside it what linear RNNs do element by element.
 */
#ifndef TENON_KERNELS_LINATTN_H
#define TENON_KERNELS_LINATTN_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * enum linattn_decay - what alpha is
 * @LINATTN_VECTOR: e^g, an element of g for each of dk
 * @LINATTN_SCALAR: e^g, one g for all of dk
 * @LINATTN_FIXED: 1 - 2^(-5-h), h the head. Sun et al. 2023, arXiv 2307.08621
 * @LINATTN_NONE: 1
 */
enum linattn_decay { LINATTN_VECTOR, LINATTN_SCALAR, LINATTN_FIXED, LINATTN_NONE };

/* What the heads of a group share. */
enum { LINATTN_Q = 1, LINATTN_K = 2, LINATTN_V = 4, LINATTN_G = 8 };

/**
 * struct linattn - one recurrence
 * @b: sequences
 * @t: positions; 1 in step
 * @heads: heads
 * @group: heads in a row that share what @shared says; divides @heads
 * @shared: bits of the above
 * @dk: width of a query and a key
 * @dv: width of a value and an output
 * @chunk: positions from one state to the next that backward keeps, a multiple of 16
 * @decay: what alpha is
 * @scale: of the outputs
 * @q: element (i, h, e) at q[i * q_row + h * q_head + e], i = sequence * t + position; of
 *	what is shared h is the number of the group
 * @q_row: row stride of q
 * @q_head: head stride of q
 * @k: as q
 * @k_row: row stride of k
 * @k_head: head stride of k
 * @v: as q, width dv
 * @v_row: row stride of v
 * @v_head: head stride of v
 * @g: as q, width dk or 1, all <= 0; NULL where nothing decays by it
 * @g_row: row stride of g
 * @g_head: head stride of g
 * @o: output, [b*t][heads][dv]
 * @s0: NULL for 0, or [b][heads][dk][dv], the state before the first position
 */
struct linattn {
	int b, t, heads, group;
	unsigned int shared;
	int dk, dv, chunk;
	enum linattn_decay decay;
	double scale;
	const act_t *q;
	long q_row, q_head;
	const act_t *k;
	long k_row, k_head;
	const act_t *v;
	long v_row, v_head;
	const acc_t *g;
	long g_row, g_head;
	act_t *o;
	const acc_t *s0;
};

/** k_linattn_fwd() - o */
void k_linattn_fwd(const struct linattn *a);

/**
 * struct linattn_grad - gradients
 * @d_o: of o, [b*t][heads][dv]
 * @dq: of q, its strides; what heads share sums over them in a fixed order
 * @dk: of k
 * @dv: of v
 * @dg: of g; not written where nothing decays by it
 * @ds1: NULL for 0, or of the state behind the last position, [b][heads][dk][dv]
 * @ds0: NULL, or of s0
 * @scratch: LINATTN_SCRATCH() elements
 */
struct linattn_grad {
	const act_t *d_o;
	act_t *dq, *dk, *dv;
	acc_t *dg;
	const acc_t *ds1;
	acc_t *ds0, *scratch;
};

/**
 * k_linattn_bwd() - gradients of k_linattn_fwd(), which saves nothing
 *
 * States are made again, a chunk at a time. dg_t is the sum over u >= t of q_u dq_u -
 * k_u dk_u, and what the last state adds (arXiv 2312.06635, appendix); of that what lies
 * behind a block (on a GPU: a chunk) is taken from the state there and its gradient.
 */
void k_linattn_bwd(const struct linattn *a, const struct linattn_grad *d);

/* Elements of a row of dk elements in scratch: whole vectors on every arch. */
#define LINATTN_WIDTH(dk) ROUND_UP((size_t)(dk), 64 / sizeof(acc_t))

/* On a GPU, of a head at one position: gradients that heads share, before they are added up. */
#define LINATTN_PARTS(shared, dk, dv) (IS_ENABLED(CONFIG_ARCH_CUDA) * \
	(((shared) & LINATTN_Q ? (dk) : 0) + ((shared) & LINATTN_K ? (dk) : 0) + \
	 ((shared) & LINATTN_V ? (dv) : 0) + \
	 ((shared) & LINATTN_G ? (size_t)(dk) : LINATTN_WIDTH(dk) / 16)))

/*
 * Positions from one kept state to the next. On a GPU at most 64: for so many tensor cores keep a
 * state and its gradient, in half the bytes each.
 */
#define LINATTN_KEEP(chunk) (IS_ENABLED(CONFIG_ARCH_CUDA) && (chunk) > 64 ? 64 : (chunk))

/* States of a head: one for each chunk, and the gradient of one. */
#define LINATTN_KEPT(t, chunk) (((t) + LINATTN_KEEP(chunk) - 1) / LINATTN_KEEP(chunk) + 1)

/* Of every head: those states, and those parts. */
#define LINATTN_SCRATCH(b, t, heads, shared, dk, dv, chunk) ((size_t)(b) * (heads) * \
	(LINATTN_KEPT(t, chunk) * (dv) * LINATTN_WIDTH(dk) + (t) * LINATTN_PARTS(shared, dk, dv)))

/**
 * k_linattn_state() - the state behind the first len[i] positions of each sequence
 * @state: [heads][dk][dv] of sequence i at state + i * seq
 * @seq: stride from sequence to sequence
 * @len: [b], 1..t
 *
 * Of @a neither q nor o is looked at.
 */
void k_linattn_state(const struct linattn *a, acc_t *state, long seq, const int32_t *len);

/** k_linattn_step() - one position of each sequence: state and o; at pos 0 it starts from 0 */
void k_linattn_step(const struct linattn *a, acc_t *state, long seq, const int32_t *pos);

/**
 * struct linattn_host - operands of one head of one sequence on the host
 * @q: [t][dk], before the scale
 * @k: [t][dk]
 * @v: [t][dv]
 * @alpha: [t][dk]
 */
struct linattn_host {
	double *q, *k, *v, *alpha;
};

/** k_linattn_get() - those of head @h of sequence @i, as stored, into the buffers of @x */
void k_linattn_get(const struct linattn *a, int i, int h, struct linattn_host *x);

/** k_linattn_put() - o[t][dv] of head @h of sequence @i, rounded as the recurrence does */
void k_linattn_put(const struct linattn *a, int i, int h, const double *o);

/* ---- what goes in ------------------------------------------------------------ */

/** k_log_decay_fwd() - g[i] = logsigmoid(z[i]) / tau */
void k_log_decay_fwd(acc_t *g, const act_t *z, size_t n, double tau);

/** k_log_decay_bwd() - dz[i] = dg[i] sigmoid(-z[i]) / tau */
void k_log_decay_bwd(act_t *dz, const acc_t *dg, const act_t *z, size_t n, double tau);

/** k_unit_fwd() - y = x / sqrt(|x|^2 + 1e-12) of each of @n rows of @width */
void k_unit_fwd(act_t *y, const act_t *x, int n, int width);

/** k_unit_bwd() - dx from dy; @dx may be @dy */
void k_unit_bwd(act_t *dx, const act_t *dy, const act_t *x, int n, int width);

/**
 * struct ssm - the inputs of a selective state space, its discretisation and its skip
 * @n: rows
 * @heads: heads
 * @p: width of a head
 * @x: [n][heads][p], row stride @x_row
 * @x_row: of x and of its gradient
 * @raw: [n][heads] before softplus, row stride @raw_row
 * @raw_row: of raw and of its gradient
 * @dt_bias: [heads]
 * @a_log: [heads]
 * @d: [heads]
 * @dt: [n][heads] softplus(raw + dt_bias)
 * @g: [n][heads] -dt e^a_log
 *
 * Dao and Gu 2024, arXiv 2405.21060.
 */
struct ssm {
	int n, heads, p;
	const act_t *x;
	long x_row;
	const act_t *raw;
	long raw_row;
	const acc_t *dt_bias, *a_log, *d;
	acc_t *dt, *g;
};

/** k_ssm_fwd() - dt, g and v[n][heads][p] = dt x */
void k_ssm_fwd(const struct ssm *a, act_t *v);

/** k_ssm_skip() - y[n][heads][p] = o + d x; @y may be @o */
void k_ssm_skip(const struct ssm *a, act_t *y, const act_t *o);

/**
 * struct ssm_grad - gradients
 * @dy: of k_ssm_skip()'s y, [n][heads][p]
 * @dv: of v, [n][heads][p]
 * @dg: of g, [n][heads]
 * @dx: of x, its strides
 * @draw: of raw, its strides
 * @ddt_bias: [heads], as the two behind it summed over rows in a fixed order
 * @da_log: [heads]
 * @dd: [heads]
 */
struct ssm_grad {
	const act_t *dy, *dv;
	const acc_t *dg;
	act_t *dx, *draw;
	grad_t *ddt_bias, *da_log, *dd;
};

/** k_ssm_bwd() - gradients of k_ssm_fwd() and k_ssm_skip() */
void k_ssm_bwd(const struct ssm *a, const struct ssm_grad *d);

/* ---- what comes out ---------------------------------------------------------- */

/**
 * struct gated_norm - RMSNorm of groups of columns, and a gate SiLU(z)
 * @n: rows
 * @groups: groups of a row
 * @width: columns of a group
 * @gate_first: the gate stands before the norm, else behind it
 * @epsilon: as in struct norm
 * @x: [n][groups][width]
 * @z: [n][groups][width], row stride @z_row; NULL: no gate
 * @z_row: of z and of its gradient
 * @w: [groups][width], group stride @w_group; NULL: no norm
 * @w_group: width; or 0: all groups share [width]
 * @rstd: [n][groups] where there is a norm
 * @y: [n][groups][width]
 */
struct gated_norm {
	int n, groups, width;
	bool gate_first;
	double epsilon;
	const act_t *x, *z;
	long z_row;
	const acc_t *w;
	long w_group;
	acc_t *rstd;
	act_t *y;
};

/** k_gated_norm_fwd() - y and rstd */
void k_gated_norm_fwd(const struct gated_norm *a);

/**
 * k_gated_norm_bwd() - gradients; y is not looked at
 * @dx: [n][groups][width]; may be @dy
 * @dz: of z, its strides; NULL without a gate
 * @dw: of w, summed over rows in a fixed order; NULL without a norm
 * @dy: [n][groups][width]
 */
void k_gated_norm_bwd(const struct gated_norm *a, act_t *dx, act_t *dz, grad_t *dw,
		      const act_t *dy);

#ifdef __cplusplus
}
#endif

#endif
