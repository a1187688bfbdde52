// SPDX-License-Identifier: MIT
/*
 * Statistics that mixers keep of themselves (RA_MLA_LOG_METRICS), one row per
 * sub-layer. They describe the last micro-batch of a step, at the weights that
 * computed it, and change nothing.
 */
#include "train.h"

static int sub_metrics(const struct model *m, int s, struct metric *out)
{
	const struct sublayer *sub = &m->sub[s];
	const struct mixer_args a = {
		.b = B_MAX,
		.t = T_MAX,
		.read = sub->read,
		.w = m->w + sub->param,
		.act = m->act[s],
		.tmp = m->tmp,
		.x = m->norm[s]->xn[0],
		.in = m->taps[s],
	};

	return sub->mixer->metrics ? sub->mixer->metrics(&a, out) : 0;
}

void stats_log(const struct run *r, int64_t step)
{
	struct metric values[NR_METRICS];

	for (int s = 0; s < NR_SUB; s++) {
		int n = sub_metrics(&r->m, s, values);

		if (n)
			metrics_stats(r->metrics, step, r->m.sub[s].layer,
				      r->m.sub[s].mixer->name, values, n);
	}
}
