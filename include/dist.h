/* SPDX-License-Identifier: MIT */
/**
 * DOC: ranks
 *
 * One implementation per binary (dist/). A rank owns a contiguous run of the
 * micro-batches of a step.
 */
#ifndef TENON_DIST_H
#define TENON_DIST_H

/** dist_init() - join the job; dies where GRADIENT_ACCUMULATION is no multiple of the ranks */
void dist_init(void);
/** dist_rank() - this rank, 0-based */
int dist_rank(void);
/** dist_size() - number of ranks */
int dist_size(void);

#endif
