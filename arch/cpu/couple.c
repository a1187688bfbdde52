// SPDX-License-Identifier: MIT
/*
 * A matrix given by one factor per head, and transposed copies. The transposed side is
 * the written one: its rows are spread over the threads.
 */
#include "kernels_couple.h"
#include "real.h"

enum { SPLIT_MIN = 16384 };	/* elements below which threads cost more than they gain */

static int couple_head(const struct couple *c, int f)
{
	return (long)f * c->heads / c->fdim;
}

void k_couple_fill(const struct couple *c, param_t *w, const param_t *p)
{
#pragma omp parallel for schedule(static) if ((long)c->fdim * c->l >= SPLIT_MIN)
	for (int f = 0; f < c->fdim; f++) {
		param_t *row = w + f * c->f_stride;

		for (int j = 0; j < c->l; j++)
			row[j * c->l_stride] = store(0);
		row[f % c->l * c->l_stride] = store((acc_t)c->factor * load(p[couple_head(c, f)]));
	}
}

/* First element of a head. */
static int couple_first(const struct couple *c, int head)
{
	return ((long)head * c->fdim + c->heads - 1) / c->heads;
}

/* A head is summed in ascending f, in double. */
void k_couple_grad(const struct couple *c, grad_t *dp, const grad_t *dw)
{
	for (int head = 0; head < c->heads; head++) {
		double sum = 0;

		for (int f = couple_first(c, head); f < couple_first(c, head + 1); f++)
			sum += dw[f * c->f_stride + f % c->l * c->l_stride];
		dp[head] = c->factor * sum;
	}
}

void k_transpose(param_t *dst, long ldd, const param_t *src, long lds, int rows, int cols)
{
#pragma omp parallel for schedule(static) if ((long)rows * cols >= SPLIT_MIN)
	for (int j = 0; j < cols; j++)
		for (int i = 0; i < rows; i++)
			dst[j * ldd + i] = src[i * lds + j];
}

void k_transpose_grad(grad_t *dst, long ldd, const grad_t *src, long lds, int rows, int cols,
		      double beta)
{
	const grad_t q = beta;

#pragma omp parallel for schedule(static) if ((long)rows * cols >= SPLIT_MIN)
	for (int j = 0; j < cols; j++)
		for (int i = 0; i < rows; i++) {
			grad_t *to = dst + j * ldd + i;

			*to = src[i * lds + j] + (beta == 0 ? 0 : q * *to);
		}
}
