/* SPDX-License-Identifier: MIT */
/**
 * DOC: SwiGLU
 *
 * The rules of kernels.h hold. silu(x) = x sigmoid(x); Shazeer 2020, arXiv 2002.05202.
 */
#ifndef TENON_KERNELS_SWIGLU_H
#define TENON_KERNELS_SWIGLU_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * k_swiglu_fwd() - h[i][j] = silu(gu[i][j]) gu[i][width + j]
 * @h: [n][width]
 * @gu: [n][2 width]: gates, then what they let through
 */
void k_swiglu_fwd(act_t *h, const act_t *gu, int n, int width);

/** k_swiglu_bwd() - dgu[n][2 width] from dh[n][width] */
void k_swiglu_bwd(act_t *dgu, const act_t *gu, const act_t *dh, int n, int width);

#ifdef __cplusplus
}
#endif

#endif
