// SPDX-License-Identifier: MIT
/*
 * Element-wise work, over blocks of a fixed size so that an element's place in the
 * vector loop does not depend on the thread count.
 */
#include "kernels.h"
#include "math.h"
#include "util.h"

enum {
	BLOCK = 4096,		/* elements: 16 KiB of float, inside the first cache */
	SPLIT_MIN = 4 * BLOCK,	/* below, threads cost more than they gain */
};

void k_gelu_fwd(act_t *h, const act_t *pre, size_t n)
{
#pragma omp parallel for schedule(static) if (n >= SPLIT_MIN)
	for (size_t i = 0; i < n; i += BLOCK)
#pragma omp simd simdlen(LANES_WIDE)
		for (size_t j = i; j < MIN(i + BLOCK, n); j++)
			h[j] = store(r_gelu(load(pre[j])));
}

void k_gelu_bwd(act_t *dpre, const act_t *pre, const act_t *dh, size_t n)
{
#pragma omp parallel for schedule(static) if (n >= SPLIT_MIN)
	for (size_t i = 0; i < n; i += BLOCK)
#pragma omp simd simdlen(LANES_WIDE)
		for (size_t j = i; j < MIN(i + BLOCK, n); j++)
			dpre[j] = store(load(dh[j]) * r_gelu_grad(load(pre[j])));
}

/* One row of k_axpby(). */
static void axpby_row(act_t *y, const act_t *x, int c, acc_t p, acc_t q)
{
	if (q == 0) {
#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < c; j++)
			y[j] = store(p * load(x[j]));
	} else {
#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < c; j++)
			y[j] = store(p * load(x[j]) + q * load(y[j]));
	}
}

void k_axpby(act_t *y, long ldy, const act_t *x, long ldx, int n, int c, double alpha, double beta)
{
#pragma omp parallel for schedule(static) if ((long)n * c >= SPLIT_MIN)
	for (int i = 0; i < n; i++)
		axpby_row(y + i * ldy, x + i * ldx, c, alpha, beta);
}

void k_sum_grad(grad_t *older, const grad_t *newer, size_t n)
{
#pragma omp parallel for schedule(static) if (n >= SPLIT_MIN)
	for (size_t i = 0; i < n; i += BLOCK)
#pragma omp simd simdlen(LANES_WIDE)
		for (size_t j = i; j < MIN(i + BLOCK, n); j++)
			older[j] += newer[j];
}
