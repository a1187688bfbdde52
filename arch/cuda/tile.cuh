/* SPDX-License-Identifier: MIT */
/**
 * DOC: tiles of real numbers: bf16 for tensor cores, or float
 */
#ifndef TENON_CUDA_TILE_CUH
#define TENON_CUDA_TILE_CUH

#ifdef CONFIG_REAL_BF16
#include "attn_mma.cuh"
#else
#include "attn_fma.cuh"
#endif

#endif
