/* SPDX-License-Identifier: MIT */
/**
 * DOC: short convolutions over positions
 *
 * The rules of kernels.h hold. Causal and depthwise, zeros before the first position; the
 * last tap meets the position itself:
 *
 *     y_t = SiLU(bias + sum over j of w_j x_(t - taps + 1 + j))
 */
#ifndef TENON_KERNELS_CONV_H
#define TENON_KERNELS_CONV_H

#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CONV_TAPS_MAX = 16 };

/**
 * struct conv - one convolution
 * @b: sequences
 * @t: positions; 1 in step
 * @c: channels
 * @taps: 2..CONV_TAPS_MAX
 * @x: [b][t][c], row stride @x_row
 * @x_row: of x and of its gradient
 * @w: [c][taps]
 * @bias: [c] or NULL
 * @y: [b][t][c], row stride @y_row
 * @y_row: of y and of its gradient
 */
struct conv {
	int b, t, c, taps;
	const act_t *x;
	long x_row;
	const param_t *w, *bias;
	act_t *y;
	long y_row;
};

/** k_conv_fwd() - y */
void k_conv_fwd(const struct conv *a);

/**
 * k_conv_bwd() - gradients; y is not looked at
 * @dx: of x, its strides; may be @dy where the strides are the same
 * @dw: [c][taps], summed over rows in a fixed order
 * @db: [c]; NULL without a bias
 * @dy: of y, its strides
 */
void k_conv_bwd(const struct conv *a, act_t *dx, grad_t *dw, grad_t *db, const act_t *dy);

/**
 * k_conv_step() - y of one position of each sequence, then x goes into the ring
 * @past: the last taps - 1 inputs: a ring of as many slots, rows of c
 * @pos: [b]; what stands before position 0 is not looked at
 */
void k_conv_step(const struct conv *a, const struct cache_rows *past, const int32_t *pos);

#ifdef __cplusplus
}
#endif

#endif
