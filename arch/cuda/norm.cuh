/* SPDX-License-Identifier: MIT */
/**
 * DOC: backward of a norm
 */
#ifndef TENON_CUDA_NORM_CUH
#define TENON_CUDA_NORM_CUH

#include "kernels.h"
#include "rows.cuh"

/** struct norm_bwd - the arguments of k_norm_bwd() */
struct norm_bwd {
	struct norm a;
	real *dx;
	const real *dres, *dxn;
	grad_t *dw, *db;
};

#ifdef CONFIG_REAL_BF16
/**
 * norm_bwd_team() - in one pass, where a few warps can hold a row
 *
 * All rows begin at multiples of 16 bytes. Returns: false where rows are longer, and
 * nothing was started.
 */
bool norm_bwd_team(const struct norm_bwd *n);
#else
static inline bool norm_bwd_team(const struct norm_bwd *n)
{
	(void)n;
	return false;
}
#endif

#endif
