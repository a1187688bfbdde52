/* SPDX-License-Identifier: MIT */
/**
 * DOC: what forward and backward of attention on wgmma share
 */
#ifndef TENON_CUDA_ATTN_WGMMA_CUH
#define TENON_CUDA_ATTN_WGMMA_CUH

#include "attn.cuh"
#include "wgmma.cuh"

/* Operands of a kernel: maps of q, k, v, and in backward d_o. */
struct attn_maps {
	struct head_map q, k, v, d_o;
};

struct attn_maps attn_maps_of(const struct attn_run &p);

#endif
