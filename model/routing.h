/* SPDX-License-Identifier: MIT */
/*
 * Constants of the routing that an attention hands to an MLP, TAP_ROUTE: known to
 * its writer (ra_mla) and its reader (recip).
 */
#ifndef TENON_ROUTING_H
#define TENON_ROUTING_H

#include "mixer.h"
#include "linear.h"

#define ROUTE_MODE \
	(IS_ENABLED(CONFIG_RA_MLA_MLP_SPARSE_MODE_TOPK) ? ROUTE_TOPK : \
	 IS_ENABLED(CONFIG_RA_MLA_MLP_SPARSE_MODE_RMS) ? ROUTE_RMS : ROUTE_NONE)

enum {
	/* list entries per row; 0 where rows are recomputed from thresholds */
	ROUTE_K = ROUTE_ROWS && ROUTE_MODE == ROUTE_TOPK ? CONFIG_RA_MLA_MLP_SPARSE_K : 0,
	ROUTE_DENSE = ROUTE_ROWS && ROUTE_MODE != ROUTE_TOPK,
	/* at least k_route_scratch() at capacity */
	ROUTE_SCRATCH = ROUTE_K ? ROUTE_ROWS * ((size_t)BT * (ROUTE_K + 1) + B_MAX) : 0,
	/* positions that the reciprocal term of the scores reaches, itself included */
	ROUTE_BAND = CONFIG_RA_MLA_RA_ALPHA_NONZERO ? CONFIG_RA_MLA_RA_WINDOW + 1 : 0,
};

/* an entry of a sequence's lists is numbered t * ROUTE_K + slot, in int32 */
static_assert((int64_t)T_MAX * ROUTE_K <= INT32_MAX, "lower CONFIG_RA_MLA_MLP_SPARSE_K or "
	      "CONFIG_BLOCK_SIZE: their product must stay below 2^31");

/* operations of the scores of all visible pairs and heads, reciprocal term included */
static inline double score_flops(int b, int t)
{
	return linear_flops(causal_pairs(b, t, t) + causal_pairs(b, t, ROUTE_BAND), H, L);
}

#endif
