/* SPDX-License-Identifier: MIT */
/**
 * DOC: ranks
 *
 * One implementation per binary (dist/). With n = GRADIENT_ACCUMULATION / size, rank r
 * computes the contiguous micro-batches [r n, (r + 1) n) of every step. Where a buffer is
 * shared out, rank r owns its elements [bound[r], bound[r + 1]); the bounds, size + 1 of
 * them, are the same on every rank.
 *
 * dist_sum() and dist_gather() are asynchronous, in the order of the stream, and can be
 * recorded by arch_replay(). All ranks make the same calls in the same order. A rank
 * that fails takes the others with it (die_hook()), naming itself.
 */
#ifndef TENON_DIST_H
#define TENON_DIST_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/** dist_init() - join the job; dies where GRADIENT_ACCUMULATION is no multiple of the ranks */
void dist_init(void);
/** dist_rank() - this rank, 0-based */
int dist_rank(void);
/** dist_size() - number of ranks */
int dist_size(void);
/** dist_leads() - whether this rank is the one that logs and writes files */
bool dist_leads(void);

/**
 * dist_sum() - sums over the ranks of gradients [offset, offset + n)
 * @grad: whole flat buffer; elements of the range that this rank owns get the sum,
 *	the others become undefined
 * @bound: owners, in elements
 *
 * In the order of the accumulation tree: ranks are leaves of the same binary counter,
 * older + newer, so that where every rank has a power of two of micro-batches the bits
 * are those of one rank. Any ranges in any order give the same bits.
 */
void dist_sum(grad_t *grad, size_t offset, size_t n, const size_t *bound);

/**
 * dist_gather() - every rank gets what the others own: weights after an update, losses
 * by micro-batch, partial sums of the norm
 * @buf: whole buffer of the device; what this rank owns is complete
 * @bound: owners, in bytes
 */
void dist_gather(void *buf, const size_t *bound);

/**
 * dist_agree() - the largest @mine of all ranks
 *
 * Waits for the other hosts, not for the device. All that depends on a signal or a clock
 * goes through here.
 */
int dist_agree(int mine);

#ifdef __cplusplus
}
#endif

#endif
