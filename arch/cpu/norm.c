// SPDX-License-Identifier: MIT
/*
 * LayerNorm with the residual add, and sums over rows.
 *
 * The variance is that of the centred row, never E[x^2] - E[x]^2, which cancels.
 */
#include "kernels.h"
#include "math.h"
#include "util.h"

#define EPSILON 1e-5

enum {
	SPLIT_MIN = 16384,	/* elements below which threads cost more than they gain */
	STRIP = 64,		/* columns that one thread sums */
	GROUP = 64,		/* rows summed in act_t; the groups in double */
};

static act_t row_sum(const act_t *x, int c)
{
	act_t sum = 0;

#pragma omp simd simdlen(LANES_WIDE) reduction(+ : sum)
	for (int j = 0; j < c; j++)
		sum += x[j];
	return sum;
}

static act_t row_sum_sq(const act_t *x, act_t mean, int c)
{
	act_t sum = 0;

#pragma omp simd simdlen(LANES_WIDE) reduction(+ : sum)
	for (int j = 0; j < c; j++)
		sum += (x[j] - mean) * (x[j] - mean);
	return sum;
}

void k_add_norm_fwd(act_t *xo, act_t *xn, acc_t *mean, acc_t *rstd, const act_t *x,
		    const act_t *y, const param_t *w, const param_t *bias, int n, int c)
{
#pragma omp parallel for schedule(static) if ((long)n * c >= SPLIT_MIN)
	for (int i = 0; i < n; i++) {
		const act_t *in = x + (long)i * c;
		act_t *out = xn + (long)i * c, mu, r;

		if (y) {
			const act_t *add = y + (long)i * c;
			act_t *sum = xo + (long)i * c;

#pragma omp simd simdlen(LANES_WIDE)
			for (int j = 0; j < c; j++)
				sum[j] = in[j] + add[j];
			in = sum;
		}
		mu = row_sum(in, c) / c;
		r = 1 / sqrt(row_sum_sq(in, mu, c) / (double)c + EPSILON);
#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < c; j++)
			out[j] = (in[j] - mu) * r * w[j] + bias[j];
		mean[i] = mu;
		rstd[i] = r;
	}
}

/* dx += r (g - mean(g) - xhat mean(g xhat)), g = dxn w */
static void row_bwd(act_t *dx, const act_t *dxn, const act_t *x, act_t mu, act_t r,
		    const param_t *w, int c)
{
	act_t sum = 0, dot = 0;

#pragma omp simd simdlen(LANES_WIDE) reduction(+ : sum, dot)
	for (int j = 0; j < c; j++) {
		act_t g = dxn[j] * w[j];

		sum += g;
		dot += g * ((x[j] - mu) * r);
	}
	sum /= c;
	dot /= c;
#pragma omp simd simdlen(LANES_WIDE)
	for (int j = 0; j < c; j++)
		dx[j] += r * (dxn[j] * w[j] - sum - (x[j] - mu) * r * dot);
}

/*
 * Sums of rows for a strip of columns, in ascending order: GROUP rows in act_t,
 * the groups in double. Without @x dw is not wanted. A strip belongs to one
 * thread: one sum per column whatever their number, and no buffer of partial sums.
 */
static void strip_sums(grad_t *dw, grad_t *db, const act_t *dy, const act_t *x, const acc_t *mean,
		       const acc_t *rstd, int n, int c, int width)
{
	double total[2][STRIP] = { 0 };

	for (int i0 = 0; i0 < n; i0 += GROUP) {
		act_t sum[2][STRIP] = { 0 };

		for (int i = i0; i < MIN(i0 + GROUP, n); i++) {
			const act_t *dyi = dy + (long)i * c, *xi;

#pragma omp simd simdlen(LANES_WIDE)
			for (int j = 0; j < width; j++)
				sum[0][j] += dyi[j];
			if (!x)
				continue;
			xi = x + (long)i * c;
#pragma omp simd simdlen(LANES_WIDE)
			for (int j = 0; j < width; j++)
				sum[1][j] += dyi[j] * ((xi[j] - mean[i]) * rstd[i]);
		}
		for (int j = 0; j < width; j++) {
			total[0][j] += sum[0][j];
			total[1][j] += sum[1][j];
		}
	}
	for (int j = 0; j < width; j++) {
		db[j] = total[0][j];
		if (x)
			dw[j] = total[1][j];
	}
}

void k_norm_bwd(act_t *dx, grad_t *dw, grad_t *db, const act_t *dxn, const act_t *x,
		const acc_t *mean, const acc_t *rstd, const param_t *w, int n, int c)
{
#pragma omp parallel if ((long)n * c >= SPLIT_MIN)
	{
#pragma omp for schedule(static) nowait
		for (int i = 0; i < n; i++)
			row_bwd(dx + (long)i * c, dxn + (long)i * c, x + (long)i * c, mean[i],
				rstd[i], w, c);
#pragma omp for schedule(static)
		for (int j = 0; j < c; j += STRIP)
			strip_sums(dw + j, db + j, dxn + j, x + j, mean, rstd, n, c,
				   MIN(STRIP, c - j));
	}
}

void k_bias_grad(grad_t *db, const act_t *dy, int n, int c)
{
#pragma omp parallel for schedule(static) if ((long)n * c >= SPLIT_MIN)
	for (int j = 0; j < c; j += STRIP)
		strip_sums(NULL, db + j, dy + j, NULL, NULL, NULL, n, c, MIN(STRIP, c - j));
}
