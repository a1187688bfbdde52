/* SPDX-License-Identifier: MIT */
/**
 * DOC: activation functions
 *
 * GELU in GPT-2's tanh form: 0.5 x (1 + tanh u) = x sigmoid(2u) with
 * u = sqrt(2/pi) (x + 0.044715 x^3). The sigmoid form does not cancel for negative x.
 */
#ifndef TENON_CUDA_ACT_CUH
#define TENON_CUDA_ACT_CUH

#include "common.cuh"

#define GELU_SCALE 1.5957691216057308f	/* 2 sqrt(2/pi) */
#define GELU_CUBIC 0.044715f

/** sigmoid() - 1 / (1 + e^-x), relative accuracy in both tails */
static __device__ __forceinline__ float sigmoid(float x)
{
	return __fdividef(1, 1 + exp2_fast(-LOG2E * x));
}

/** gelu() */
static __device__ __forceinline__ float gelu(float x)
{
	return x * sigmoid(GELU_SCALE * x * (1 + GELU_CUBIC * x * x));
}

/** gelu_grad() - derivative of gelu(): s + x s (1 - s) d(2u)/dx */
static __device__ __forceinline__ float gelu_grad(float x)
{
	float xx = x * x, s = sigmoid(GELU_SCALE * x * (1 + GELU_CUBIC * xx));

	return s + x * s * (1 - s) * GELU_SCALE * (1 + 3 * GELU_CUBIC * xx);
}

#endif
