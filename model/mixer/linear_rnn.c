// SPDX-License-Identifier: MIT
/* What recurrences of every mixer execute, and where they pass by: `tenon compress` looks at them. */
#include "linear_rnn.h"

static struct {
	linear_rnn_fn *fn;
	void *ctx;
} watch;

void linear_rnn_watch(linear_rnn_fn *fn, void *ctx)
{
	watch.fn = fn;
	watch.ctx = ctx;
}

void linear_rnn_forward(const struct mixer_args *a, const struct linattn *mix)
{
	k_linattn_fwd(mix);
	if (watch.fn)
		watch.fn(watch.ctx, a, mix);
}

void linattn_work(struct work *w, int b, int t, int heads, double k, double v, bool backward)
{
	double all = (double)b * heads, swept = (t - 1) / CONFIG_LINEAR_CHUNK * CONFIG_LINEAR_CHUNK;

	work_pairs(w, all * t, backward ? 5 * k * v + 33 * k + 32 * v : 2 * k * v + 16 * (k + v));
	work_pairs(w, all * swept, backward ? k * v : 0);
}
