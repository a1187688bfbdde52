// SPDX-License-Identifier: MIT
/*
 * LayerNorm and RMSNorm with the residual add.
 *
 * The variance is that of the centred row, never E[x^2] - E[x]^2, which cancels.
 * RMSNorm is LayerNorm with a mean of 0 and no bias.
 */
#include "kernels.h"
#include "math.h"
#include "util.h"

enum {
	SPLIT_MIN = 16384,	/* elements below which threads cost more than they gain */
	STRIP = 64,		/* columns that one thread sums */
	GROUP = 64,		/* rows summed in acc_t; the groups in double */
};

static acc_t row_sum(const act_t *x, int c)
{
	acc_t sum = 0;

#pragma omp simd simdlen(LANES_WIDE) reduction(+ : sum)
	for (int j = 0; j < c; j++)
		sum += load(x[j]);
	return sum;
}

static acc_t row_sum_sq(const act_t *x, acc_t mean, int c)
{
	acc_t sum = 0;

#pragma omp simd simdlen(LANES_WIDE) reduction(+ : sum)
	for (int j = 0; j < c; j++)
		sum += (load(x[j]) - mean) * (load(x[j]) - mean);
	return sum;
}

/* The norm of row @i, whose input is @x. */
static void row_fwd(const struct norm *a, int i, const act_t *x)
{
	act_t *xn = a->xn + (long)i * a->c;
	acc_t mu = a->rms ? 0 : row_sum(x, a->c) / a->c;
	acc_t r = 1 / sqrt(row_sum_sq(x, mu, a->c) / (double)a->c + a->epsilon);
	const acc_t *w = a->w, *bias = a->bias;

	a->rstd[i] = r;
	if (a->rms) {
#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < a->c; j++)
			xn[j] = store(load(x[j]) * r * w[j]);
		return;
	}
	a->mean[i] = mu;
#pragma omp simd simdlen(LANES_WIDE)
	for (int j = 0; j < a->c; j++)
		xn[j] = store((load(x[j]) - mu) * r * w[j] + bias[j]);
}

void k_add_norm_fwd(const struct norm *a)
{
#pragma omp parallel for schedule(static) if ((long)a->n * a->c >= SPLIT_MIN)
	for (int i = 0; i < a->n; i++) {
		const act_t *in = a->x + (long)i * a->c;

		if (a->y) {
			const act_t *add = a->y + (long)i * a->c;
			act_t *sum = a->xo + (long)i * a->c;

#pragma omp simd simdlen(LANES_WIDE)
			for (int j = 0; j < a->c; j++)
				sum[j] = store(load(in[j]) + load(add[j]));
			in = sum;
		}
		row_fwd(a, i, in);
	}
}

/* dx = dres + r (g - mean(g) - xhat mean(g xhat)), g = dxn w; no mean(g) in RMSNorm */
static void row_bwd(const struct norm *a, act_t *dx, const act_t *dres, const act_t *dxn, int i)
{
	const act_t *x = a->x + (long)i * a->c;
	acc_t mu = a->rms ? 0 : a->mean[i], r = a->rstd[i], sum = 0, dot = 0;
	const acc_t *w = a->w;

#pragma omp simd simdlen(LANES_WIDE) reduction(+ : sum, dot)
	for (int j = 0; j < a->c; j++) {
		acc_t g = load(dxn[j]) * w[j];

		sum += g;
		dot += g * ((load(x[j]) - mu) * r);
	}
	sum = a->rms ? 0 : sum / a->c;
	dot /= a->c;
	if (!dres) {
#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < a->c; j++)
			dx[j] = store(r * (load(dxn[j]) * w[j] - sum -
					   (load(x[j]) - mu) * r * dot));
		return;
	}
#pragma omp simd simdlen(LANES_WIDE)
	for (int j = 0; j < a->c; j++)
		dx[j] = store(load(dres[j]) + r * (load(dxn[j]) * w[j] - sum -
						   (load(x[j]) - mu) * r * dot));
}

/*
 * Columns [j0, j0 + width) of dw and db: the rows in ascending order, GROUP rows in
 * acc_t, the groups in double. A strip belongs to one thread: one sum per column
 * whatever their number, and no buffer of partial sums.
 */
static void strip_sums(const struct norm *a, grad_t *dw, grad_t *db, const act_t *dxn, int j0,
		       int width)
{
	double total[2][STRIP] = { 0 };

	for (int i0 = 0; i0 < a->n; i0 += GROUP) {
		acc_t sum[2][STRIP] = { 0 };

		for (int i = i0; i < MIN(i0 + GROUP, a->n); i++) {
			const act_t *dy = dxn + (long)i * a->c + j0;
			const act_t *x = a->x + (long)i * a->c + j0;
			acc_t mu = a->rms ? 0 : a->mean[i], r = a->rstd[i];

#pragma omp simd simdlen(LANES_WIDE)
			for (int j = 0; j < width; j++)
				sum[0][j] += load(dy[j]);
#pragma omp simd simdlen(LANES_WIDE)
			for (int j = 0; j < width; j++)
				sum[1][j] += load(dy[j]) * ((load(x[j]) - mu) * r);
		}
		for (int j = 0; j < width; j++) {
			total[0][j] += sum[0][j];
			total[1][j] += sum[1][j];
		}
	}
	for (int j = 0; j < width; j++) {
		dw[j0 + j] = total[1][j];
		if (!a->rms)
			db[j0 + j] = total[0][j];
	}
}

void k_norm_bwd(const struct norm *a, act_t *dx, const act_t *dres, const act_t *dxn, grad_t *dw,
		grad_t *db)
{
#pragma omp parallel if ((long)a->n * a->c >= SPLIT_MIN)
	{
#pragma omp for schedule(static) nowait
		for (int i = 0; i < a->n; i++)
			row_bwd(a, dx + (long)i * a->c, dres ? dres + (long)i * a->c : NULL,
				dxn + (long)i * a->c, i);
#pragma omp for schedule(static)
		for (int j = 0; j < a->c; j += STRIP)
			strip_sums(a, dw, db, dxn, j, MIN(STRIP, a->c - j));
	}
}
