/* SPDX-License-Identifier: MIT */
/**
 * DOC: matrix products that cuBLASLt does not do
 */
#ifndef TENON_CUDA_GEMM_CUH
#define TENON_CUDA_GEMM_CUH

#include "common.cuh"
#include "kernels.h"

/**
 * gemm_thin() - a few rows against weights: every row of b is read once
 * @wide: the result is float
 *
 * Returns: false where the product is of another kind, and nothing was started.
 */
bool gemm_thin(const struct gemm *g, bool wide);

/** gemm_loops() - without epilogue, one thread an element: what the library refuses */
void gemm_loops(const struct gemm *g, bool wide);

/** gemm_epilogue() - the epilogue as a pass of its own over c, which holds the product */
void gemm_epilogue(const struct gemm *g);

#endif
