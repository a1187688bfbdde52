/* SPDX-License-Identifier: MIT */
/**
 * DOC: SiLU and softplus
 */
#ifndef TENON_CUDA_SILU_CUH
#define TENON_CUDA_SILU_CUH

#include "act.cuh"

/** silu() - x sigmoid(x) */
static __device__ __forceinline__ float silu(float x)
{
	return x * sigmoid(x);
}

/** silu_grad() - derivative of silu() */
static __device__ __forceinline__ float silu_grad(float x)
{
	float s = sigmoid(x);

	return s + x * s * (1 - s);
}

/** softplus() - log(1 + e^x), above 0 without an overflow, below without a cancellation */
static __device__ __forceinline__ float softplus(float x)
{
	return fmaxf(x, 0) + log1pf(expf(-fabsf(x)));
}

#endif
