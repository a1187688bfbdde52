/* SPDX-License-Identifier: MIT */
/* What linear RNNs share: first values of their matrices, and what a recurrence executes. */
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

/*
 * Multiply-adds of k_linattn_fwd(), or k_linattn_bwd(), for a position of a head: states read
 * and written, and each position with the 16 of its block.
 */
static inline double linattn_pairs(double k, double v, bool backward)
{
	return backward ? 6 * k * v + 33 * k + 32 * v : 2 * k * v + 16 * k + 16 * v;
}

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
