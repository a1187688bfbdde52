// SPDX-License-Identifier: MIT
/* SwiGLU: gate and value of a row stand side by side. */
#include "kernels_swiglu.h"
#include "math.h"

enum { SPLIT_MIN = 16384 };	/* elements below which threads cost more than they gain */

void k_swiglu_fwd(act_t *h, const act_t *gu, int n, int width)
{
#pragma omp parallel for schedule(static) if ((long)n * width >= SPLIT_MIN)
	for (int i = 0; i < n; i++) {
		const act_t *g = gu + 2L * i * width, *u = g + width;
		act_t *y = h + (long)i * width;

#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < width; j++)
			y[j] = store(load(g[j]) * r_sigmoid(load(g[j])) * load(u[j]));
	}
}

void k_swiglu_bwd(act_t *dgu, const act_t *gu, const act_t *dh, int n, int width)
{
#pragma omp parallel for schedule(static) if ((long)n * width >= SPLIT_MIN)
	for (int i = 0; i < n; i++) {
		const act_t *g = gu + 2L * i * width, *u = g + width, *d = dh + (long)i * width;
		act_t *dg = dgu + 2L * i * width, *du = dg + width;

#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < width; j++) {
			acc_t x = load(g[j]), s = r_sigmoid(x), dy = load(d[j]);

			dg[j] = store(dy * load(u[j]) * (s + x * s * (1 - s)));
			du[j] = store(dy * x * s);
		}
	}
}
