/* SPDX-License-Identifier: MIT */
/*
 * Constants of the RA-MLA family: known to the attention (ra_mla) and to the MLP that
 * exchanges taps with it (recip). Spec and forms: Documentation/ra-mla.md.
 */
#ifndef TENON_RA_MLA_H
#define TENON_RA_MLA_H

#include <assert.h>

#include "kernels_route.h"
#include "mixer.h"

/*
 * Which of two equal forms trains: keys and values expanded to the heads' width D, or
 * queries absorbed into the latent's width L. The narrower one is cheaper.
 */
#ifndef RA_MLA_EXPANDED
#define RA_MLA_EXPANDED ((int)D <= (int)L)
#endif

#define ROUTE_MODE \
	(IS_ENABLED(CONFIG_RA_MLA_MLP_SPARSE_MODE_TOPK) ? ROUTE_TOPK : \
	 IS_ENABLED(CONFIG_RA_MLA_MLP_SPARSE_MODE_RMS) ? ROUTE_RMS : ROUTE_NONE)

enum {
	L = CONFIG_RA_MLA_LATENT_DIM,	/* key and value latent */
	SCORE_WIDTH = RA_MLA_EXPANDED ? D : L,	/* of a score, as trained */
	/* positions that the reciprocal term of the scores reaches, itself included */
	RA_BAND = CONFIG_RA_MLA_RA_ALPHA_NONZERO ? CONFIG_RA_MLA_RA_WINDOW + 1 : 0,
	/* row sets of TAP_ROUTE: heads averaged, or each its own; 0 without it */
	ROUTE_ROWS = CONFIG_RA_MLA_ROUTE_ROWS,
	/* list entries per row; 0 where rows are recomputed from thresholds */
	ROUTE_K = ROUTE_ROWS && ROUTE_MODE == ROUTE_TOPK ? CONFIG_RA_MLA_MLP_SPARSE_K : 0,
	ROUTE_DENSE = ROUTE_ROWS && ROUTE_MODE != ROUTE_TOPK,
};

/* bytes of scratch of the route kernels at capacity */
#define ROUTE_SCRATCH ROUTE_SCRATCH_MAX(B_MAX, T_MAX, ROUTE_ROWS, ROUTE_K)

/* an entry of a sequence's lists is numbered t * ROUTE_K + slot, in int32 */
static_assert((int64_t)T_MAX * ROUTE_K <= INT32_MAX, "lower CONFIG_RA_MLA_MLP_SPARSE_K or "
	      "CONFIG_BLOCK_SIZE: their product must stay below 2^31");

/*
 * Taps whose rows are of no use after forward: a mix is in the keys by then, and a latent
 * beside the hidden layer, unless recip is in its direct form. Statistics look at both.
 */
#define RA_MLA_PASSING (IS_ENABLED(CONFIG_RA_MLA_LOG_METRICS) ? 0 : \
			TAP_BIT(LATENT_MIX) | TAP_BIT(LATENT))

/* How a row of attention weights becomes a routing row. */
#define ROUTE_RULE							\
	.nr = ROUTE_ROWS, .mode = ROUTE_MODE, .topk = ROUTE_K,		\
	.tau = CONFIG_RA_MLA_MLP_SPARSE_RMS_THRESHOLD,			\
	.normalize = IS_ENABLED(CONFIG_RA_MLA_MLP_SPARSE_NORMALIZE)

/* the scores of all visible pairs and heads, reciprocal term included, @times */
static inline void work_scores(struct work *w, int b, int t, int times)
{
	work_pairs(w, times * (causal_pairs(b, t, t) + causal_pairs(b, t, RA_BAND)),
		   (double)H * SCORE_WIDTH);
}

#endif
