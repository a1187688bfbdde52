/* SPDX-License-Identifier: MIT */
/**
 * DOC: pooled values and the factors of heads
 *
 * The rules of kernels.h hold.
 */
#ifndef TENON_KERNELS_GATE_H
#define TENON_KERNELS_GATE_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * k_causal_mean_fwd() - zbar_t = mean of z_0..z_t inside each sequence
 * @zbar: [b][t][c]; may be @z
 * @z: [b][t][c]
 */
void k_causal_mean_fwd(acc_t *zbar, const acc_t *z, int b, int t, int c);

/** k_causal_mean_bwd() - dz[b][t][c] from dzbar; may run in place */
void k_causal_mean_bwd(acc_t *dz, const acc_t *dzbar, int b, int t, int c);

/** k_sequence_mean_fwd() - zbar_t = mean of z over all t of the sequence: leaks the future */
void k_sequence_mean_fwd(acc_t *zbar, const acc_t *z, int b, int t, int c);

/** k_sequence_mean_bwd() - dz[b][t][c] from dzbar; may run in place */
void k_sequence_mean_bwd(acc_t *dz, const acc_t *dzbar, int b, int t, int c);

/**
 * k_causal_mean_step() - z_0..z_pos summed and averaged, one row a sequence
 * @zbar: [b][c] mean; may be @z
 * @sum: running sum of sequence i at sum + i * sum_seq; z is added, at position 0 it
 *	starts afresh
 * @sum_seq: stride from sequence to sequence
 * @z: [b][c] of this position
 * @pos: [b]
 */
void k_causal_mean_step(acc_t *zbar, acc_t *sum, long sum_seq, const acc_t *z, const int32_t *pos,
			int b, int c);

/** k_causal_mean_fill() - sum[i] = z_0 + ... + z_(len[i]-1), from zbar[b][t][c] of a forward */
void k_causal_mean_fill(acc_t *sum, long sum_seq, const acc_t *zbar, const int32_t *len, int b,
			int t, int c);

/**
 * k_head_gate_fwd() - gamma_h = (1 - alpha) + alpha sigmoid(sum_j zbar_j w_hj)
 * @gamma: [n][heads]
 * @zbar: [n][c]
 * @w: [heads][c]
 */
void k_head_gate_fwd(acc_t *gamma, const acc_t *zbar, const param_t *w, int n, int heads, int c,
		     double alpha);

/**
 * k_head_gate_bwd() - gradients of zbar and w from that of gamma
 * @dzbar: [n][c]
 * @dw: [heads][c], summed over rows in a fixed order
 * @gamma: of forward, from which the sigmoid is recovered (alpha 0 gives 0)
 * @dgamma: [n][heads]
 * @scratch: k_head_gate_scratch() bytes
 */
void k_head_gate_bwd(acc_t *dzbar, grad_t *dw, const acc_t *gamma, const acc_t *dgamma,
		     const acc_t *zbar, const param_t *w, int n, int heads, int c, double alpha,
		     void *scratch);

/**
 * k_head_gate_scratch() - bytes of scratch of k_head_gate_bwd()
 *
 * Each arch at most HEAD_GATE_SCRATCH_MAX(): what mixers plan.
 */
size_t k_head_gate_scratch(int n, int heads, int c);

/* a part of dw for every 128 rows */
#define HEAD_GATE_SCRATCH_MAX(n, heads, c) \
	(((size_t)(n) + 127) / 128 * (heads) * (c) * sizeof(acc_t))

#ifdef __cplusplus
}
#endif

#endif
