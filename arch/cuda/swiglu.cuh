/* SPDX-License-Identifier: MIT */
/**
 * DOC: SwiGLU of pieces of a row
 *
 * What a dense layer and experts share, kernels_swiglu.h: h = g s u, s = sigmoid(g).
 */
#ifndef TENON_CUDA_SWIGLU_CUH
#define TENON_CUDA_SWIGLU_CUH

#include "act.cuh"
#include "rows.cuh"

enum { SWIGLU_THREADS = 256 };	/* of a block, at most */

/* Threads of a block that has a row, whole warps. */
static inline int swiglu_threads(int width, int w)
{
	return MIN(div_up(div_up(width, w), 32) * 32, SWIGLU_THREADS);
}

static inline bool swiglu_wide(const void *x, const void *y, int width)
{
	return row_wide(x, width) && row_wide(y, width);
}

/**
 * struct swiglu_piece - W elements of a row
 * @g: gates
 * @u: what they let through
 * @s: their sigmoids
 * @d: gradient of h
 */
template <int W> struct swiglu_piece {
	float g[W], u[W], s[W], d[W];
};

/** swiglu_get() - @gu: its gates, the values @width behind; @dh: its gradients */
template <int W>
static __device__ __forceinline__ void swiglu_get(struct swiglu_piece<W> &v, const real *gu,
						  const real *dh, int width)
{
	row_load<W>(v.g, gu);
	row_load<W>(v.u, gu + width);
	row_load<W>(v.d, dh);
#pragma unroll
	for (int e = 0; e < W; e++)
		v.s[e] = sigmoid(v.g[e]);
}

/** swiglu_put() - gradients of gates and values, times @f, to @dgu */
template <int W>
static __device__ __forceinline__ void swiglu_put(const struct swiglu_piece<W> &v, real *dgu,
						  int width, float f)
{
	float dg[W], du[W];

#pragma unroll
	for (int e = 0; e < W; e++) {
		float silu = v.g[e] * v.s[e];

		dg[e] = f * v.d[e] * v.u[e] * (v.s[e] + silu * (1 - v.s[e]));
		du[e] = f * v.d[e] * silu;
	}
	row_store<W>(dgu, dg);
	row_store<W>(dgu + width, du);
}

#endif
