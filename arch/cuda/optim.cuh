/* SPDX-License-Identifier: MIT */
/**
 * DOC: what the optimizer's kernels share
 */
#ifndef TENON_CUDA_OPTIM_CUH
#define TENON_CUDA_OPTIM_CUH

#include <float.h>

#include "kernels.h"
#include "rows.cuh"
#include "../optim_scalars.h"

enum { GROUP = 4 };	/* elements that a thread takes at a time, 16 bytes */

/**
 * clipped() - an element of the gradient, clipped
 *
 * An infinite one is left as it is: it must show in the norm, so that the update is
 * skipped and not mended.
 */
static __device__ __forceinline__ float clipped(float g, float v, float clip)
{
	float most = clip * v, edge = copysignf(sqrtf(most), g);

	return g * g > most && v > 0 && fabsf(g) <= FLT_MAX ? edge : g;
}

/** range_from() - the first range that ends behind element @at, or nr */
static __device__ inline int range_from(const struct optim_span &s, size_t at)
{
	int low = 0, high = s.nr;

	while (low < high) {
		int mid = (low + high) / 2;

		if (s.ranges[mid].offset + s.ranges[mid].numel > at)
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

/**
 * each_piece() - f(range, from, to) for the pieces of [at, end) in trained tensors, in order
 */
template <class F>
static __device__ __forceinline__ void each_piece(const struct optim_span &s, size_t at,
						  size_t end, F f)
{
	for (int r = range_from(s, at); r < s.nr && s.ranges[r].offset < end; r++) {
		const struct optim_range *x = &s.ranges[r];
		size_t from = MAX(at, x->offset), to = MIN(end, x->offset + x->numel);

		if (!x->frozen && from < to)
			f(x, from, to);
	}
}

#endif
