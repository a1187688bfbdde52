// SPDX-License-Identifier: MIT
/*
 * Statistics that mixers keep of themselves (RA_MLA_LOG_METRICS for one), one row
 * per sub-layer. They describe the last micro-batch of a step, at the weights that
 * computed it, and change nothing.
 */
#include "train.h"

void stats_log(const struct run *r, int64_t step)
{
	struct metric values[NR_METRICS];

	for (int s = 0; s < NR_SUB; s++) {
		int n = model_metrics(&r->m, s, values);

		if (n)
			metrics_stats(r->metrics, step, r->m.sub[s].layer,
				      r->m.sub[s].mixer->name, values, n);
	}
}
