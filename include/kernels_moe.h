/* SPDX-License-Identifier: MIT */
/**
 * DOC: mixtures of experts
 *
 * The rules of kernels.h hold. Each of n tokens goes to k different experts; its pairs with
 * them are rows, sorted by (expert, token), so that the rows of an expert stand together:
 * n k rows, whatever the experts that are chosen, and no number is read by the host.
 */
#ifndef TENON_KERNELS_MOE_H
#define TENON_KERNELS_MOE_H

#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * struct moe - who goes where
 * @n: tokens
 * @experts: experts E
 * @k: of a token, at most E
 * @logits: [n][E]
 * @bias: [E] added to the logits where experts are chosen, or NULL
 * @slot: [n][k] the chosen experts, the largest first; of equals the smaller
 * @p: [n][k] softmax of their k logits, without the bias
 * @place: [n][k] the row of each pair
 * @pair: [n k] of each row, token * k + slot
 * @first: [E + 1] first row of each expert, then n k
 */
struct moe {
	int n, experts, k;
	const acc_t *logits, *bias;
	int32_t *slot;
	acc_t *p;
	int32_t *place, *pair, *first;
};

/** k_moe_route() - slot, p, place, pair, first from logits and bias */
void k_moe_route(const struct moe *m);

/** k_moe_route_bwd() - dlogits[n][E] from dp, by row [n k]: that of p alone, others 0 */
void k_moe_route_bwd(acc_t *dlogits, const acc_t *dp, const struct moe *m);

/** k_moe_gather() - rows[n k][c] = x of each row's token, x [n][c] */
void k_moe_gather(act_t *rows, const act_t *x, int c, const struct moe *m);

/**
 * k_moe_combine() - y[n][c] = sum over slots, in order, of the rows [n k][c], + beta y
 * @weighted: each times its p
 */
void k_moe_combine(act_t *y, const act_t *rows, int c, bool weighted, double beta,
		   const struct moe *m);

/**
 * k_moe_gemm() - an activation result of each expert's rows
 * @g: without m: rows of a and c are those above; b of expert e at b + e @sb
 */
void k_moe_gemm(const struct gemm *g, const struct moe *m);

/**
 * k_moe_gemm_grad() - each expert's weight gradient
 * @g: with ta, without k: rows of a and b are those above; c of expert e at c + e @sc, 0
 *	where the expert has no rows
 */
void k_moe_gemm_grad(const struct gemm *g, const struct moe *m);

/**
 * k_moe_swiglu_bwd() - SwiGLU of rows whose outputs are weighted
 * @dgu: [n k][2 width] gradient of gates and values
 * @h: [n k][width] p silu(gate) value, the operand of the down projection's gradient
 * @dp: [n k] gradient of each row's p
 * @gu: [n k][2 width]
 * @dh: [n k][width] gradient of silu(gate) value, but for the factor p
 */
void k_moe_swiglu_bwd(act_t *dgu, act_t *h, acc_t *dp, const act_t *gu, const act_t *dh, int width,
		      const struct moe *m);

/**
 * k_moe_balance() - *dst += weight E sum_i f_i P_i
 *
 * f_i: share of the pairs that expert i has; P_i: mean over tokens of the softmax of all
 * logits. Fedus et al. 2021, arXiv 2101.03961. In double in a fixed order.
 */
void k_moe_balance(double *dst, double weight, const struct moe *m);

/** k_moe_balance_bwd() - dlogits[n][E] += its gradient, f being constant */
void k_moe_balance_bwd(acc_t *dlogits, double weight, const struct moe *m);

/** k_moe_excess() - excess[E] = E load_i - n k: what an expert has beyond the mean, times E */
void k_moe_excess(grad_t *excess, const struct moe *m);

#ifdef __cplusplus
}
#endif

#endif
