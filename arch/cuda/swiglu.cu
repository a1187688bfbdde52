// SPDX-License-Identifier: MIT
/* SwiGLU: gate and value of a row stand side by side. A block has a row. */
#include "kernels_swiglu.h"
#include "swiglu.cuh"

template <int W>
static __global__ void __launch_bounds__(SWIGLU_THREADS)
swiglu_fwd_kernel(real *h, const real *gu, int width)
{
	long row = blockIdx.x;
	const real *g = gu + 2 * row * width;

	let_next();
	after_previous();
	for (int j = threadIdx.x * W; j < width; j += blockDim.x * W) {
		float x[W], u[W];

		row_load<W>(x, g + j);
		row_load<W>(u, g + width + j);
#pragma unroll
		for (int e = 0; e < W; e++)
			x[e] *= sigmoid(x[e]) * u[e];
		row_store<W>(h + row * width + j, x);
	}
}

template <int W>
static __global__ void __launch_bounds__(SWIGLU_THREADS)
swiglu_bwd_kernel(real *dgu, const real *gu, const real *dh, int width)
{
	long row = blockIdx.x;
	const real *g = gu + 2 * row * width;
	real *dg = dgu + 2 * row * width;

	after_previous();
	for (int j = threadIdx.x * W; j < width; j += blockDim.x * W) {
		struct swiglu_piece<W> v;

		swiglu_get(v, g + j, dh + row * width + j, width);
		swiglu_put(v, dg + j, width, 1);
	}
}

void k_swiglu_fwd(act_t *h, const act_t *gu, int n, int width)
{
	if (swiglu_wide(h, gu, width))
		launch(swiglu_fwd_kernel<WIDE>, n, swiglu_threads(width, WIDE), 0, real_of(h),
		       real_of(gu), width);
	else
		launch(swiglu_fwd_kernel<1>, n, swiglu_threads(width, 1), 0, real_of(h),
		       real_of(gu), width);
}

void k_swiglu_bwd(act_t *dgu, const act_t *gu, const act_t *dh, int n, int width)
{
	if (swiglu_wide(dgu, gu, width) && row_wide(dh, width))
		launch(swiglu_bwd_kernel<WIDE>, n, swiglu_threads(width, WIDE), 0, real_of(dgu),
		       real_of(gu), real_of(dh), width);
	else
		launch(swiglu_bwd_kernel<1>, n, swiglu_threads(width, 1), 0, real_of(dgu),
		       real_of(gu), real_of(dh), width);
}
