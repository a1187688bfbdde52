/* SPDX-License-Identifier: MIT */
/* What linear RNNs share: first values of their matrices, what a recurrence executes, who sees it. */
#ifndef TENON_LINEAR_RNN_H
#define TENON_LINEAR_RNN_H

#include "kernels_linattn.h"
#include "mixer.h"

/* INIT_XAVIER or the normal that everything else begins with. Of 1 / sqrt(in): fan_in. */
#define XAVIER_OR(init) (IS_ENABLED(CONFIG_INIT_XAVIER) ? init_xavier : init)
#define INIT_MATRIX XAVIER_OR(init_normal)
#define INIT_OUT XAVIER_OR(init_residual)
#define INIT_MAP XAVIER_OR(init_fanin)
#define INIT_GATE (IS_ENABLED(CONFIG_INIT_XAVIER) ? init_uniform : init_normal)

/**
 * linattn_work() - multiply-adds of k_linattn_fwd(), or k_linattn_bwd(), of @heads heads [k][v]
 *
 * States written and read, each position with the 16 of its block; backward sweeps over all
 * chunks but the last beforehand.
 */
void linattn_work(struct work *w, int b, int t, int heads, double k, double v, bool backward);

/**
 * typedef linear_rnn_fn - is shown each recurrence of a forward, right behind it
 * @a: of the sub-layer
 * @mix: operands and, where they may be overwritten, outputs
 */
typedef void linear_rnn_fn(void *ctx, const struct mixer_args *a, const struct linattn *mix);

/** linear_rnn_watch() - who is shown them from now on; NULL: nobody */
void linear_rnn_watch(linear_rnn_fn *fn, void *ctx);

/** linear_rnn_forward() - k_linattn_fwd() of a sub-layer */
void linear_rnn_forward(const struct mixer_args *a, const struct linattn *mix);

#endif
