/* SPDX-License-Identifier: MIT */
/**
 * DOC: what sweeps of linear recurrences leave out of a kept state
 *
 * A block goes through a segment as if there were nothing before it. What there is, is kept for
 * the segment's first chunk, where there would be 0, or backwards for its last; other chunks add
 * that with their decays.
 */
#ifndef TENON_CUDA_LINATTN_MMA_REST_CUH
#define TENON_CUDA_LINATTN_MMA_REST_CUH

#include "segments.cuh"

/* The chunk that has what is left out of chunk @n, or -1: nothing is. */
static __device__ __forceinline__ int mma_rest_from(const struct mma_run &p, bool back, int n)
{
	int per = p.seg / TILE, first = n - n % per, from = back ? first + per - 1 : first;
	bool carried = back ? from < div_up(p.a.t, TILE) - 1 : from > 0;

	return carried && n != from ? from : -1;
}

/** mma_rest_add() - eight elements of that, by their decay, to those at @s */
static __device__ __forceinline__ void mma_rest_add(bf16 *s, uint4 rest, float decay)
{
	uint4 sum = *(const uint4 *)s;

#pragma unroll
	for (int e = 0; e < 4; e++) {
		float2 y = pair_get((const bf16 *)(&rest.x + e));
		float2 z = pair_get((const bf16 *)(&sum.x + e));

		(&sum.x)[e] = pack_bf16(fmaf(decay, y.x, z.x), fmaf(decay, y.y, z.y));
	}
	*(uint4 *)s = sum;
}

#endif
