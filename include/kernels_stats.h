/* SPDX-License-Identifier: MIT */
/**
 * DOC: what is logged, not trained on
 *
 * The rules of kernels.h hold.
 */
#ifndef TENON_KERNELS_STATS_H
#define TENON_KERNELS_STATS_H

#include "kernels_attn.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * struct stats - of the elements of a tensor, summed in double in a fixed order
 * @mean: their mean
 * @rms: root of their mean square
 * @min: smallest
 * @max: largest
 */
struct stats {
	double mean, rms, min, max;
};

/**
 * k_stats() - of x[n], n >= 1
 * @dst: device
 */
void k_stats(struct stats *dst, const act_t *x, size_t n);

/** k_stats_acc() - the same of acc_t */
void k_stats_acc(struct stats *dst, const acc_t *x, size_t n);

/**
 * k_attn_entropy() - -sum_u P_u log P_u of every row, in nats
 * @a: as after k_attn_fwd(); v and o are not used
 * @entropy: [b*t][heads]
 *
 * Recomputes the scores tile by tile.
 */
void k_attn_entropy(const struct attn *a, acc_t *entropy);

#ifdef __cplusplus
}
#endif

#endif
