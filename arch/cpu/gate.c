// SPDX-License-Identifier: MIT
/*
 * The MLP's gate on attention heads: pooling over positions, and the factor.
 *
 * Sums over positions run in double, one strip of columns of one sequence per
 * thread, in the order of the positions (backward: from the last to the first).
 */
#include "kernels.h"
#include "math.h"
#include "util.h"

enum {
	SPLIT_MIN = 16384,	/* elements below which threads cost more than they gain */
	STRIP = 64,		/* columns that one thread sums */
};

/* y_t = mean of x_0..x_t */
static void strip_mean(act_t *y, const act_t *x, int t, int c, int width)
{
	double sum[STRIP] = { 0 };

	for (int i = 0; i < t; i++) {
		double inv = 1.0 / (i + 1);

#pragma omp simd
		for (int j = 0; j < width; j++) {
			sum[j] += x[(long)i * c + j];
			y[(long)i * c + j] = sum[j] * inv;
		}
	}
}

/* dx_u = sum over t >= u of dy_t / (t + 1) */
static void strip_mean_bwd(act_t *dx, const act_t *dy, int t, int c, int width)
{
	double sum[STRIP] = { 0 };

	for (int i = t - 1; i >= 0; i--) {
		double inv = 1.0 / (i + 1);

#pragma omp simd
		for (int j = 0; j < width; j++) {
			sum[j] += dy[(long)i * c + j] * inv;
			dx[(long)i * c + j] = sum[j];
		}
	}
}

/* y_t = mean of all x; it is its own backward */
static void strip_all(act_t *y, const act_t *x, int t, int c, int width)
{
	double sum[STRIP] = { 0 };

	for (int i = 0; i < t; i++)
#pragma omp simd
		for (int j = 0; j < width; j++)
			sum[j] += x[(long)i * c + j];
	for (int i = 0; i < t; i++)
#pragma omp simd
		for (int j = 0; j < width; j++)
			y[(long)i * c + j] = sum[j] / t;
}

typedef void strip_fn(act_t *y, const act_t *x, int t, int c, int width);

static void each_strip(strip_fn *f, act_t *y, const act_t *x, int b, int t, int c)
{
#pragma omp parallel for collapse(2) schedule(static) if ((long)b * t * c >= SPLIT_MIN)
	for (int i = 0; i < b; i++)
		for (int j = 0; j < c; j += STRIP)
			f(y + (long)i * t * c + j, x + (long)i * t * c + j, t, c,
			  MIN(STRIP, c - j));
}

void k_causal_mean_fwd(act_t *zbar, const act_t *z, int b, int t, int c)
{
	each_strip(strip_mean, zbar, z, b, t, c);
}

void k_causal_mean_bwd(act_t *dz, const act_t *dzbar, int b, int t, int c)
{
	each_strip(strip_mean_bwd, dz, dzbar, b, t, c);
}

void k_sequence_mean_fwd(act_t *zbar, const act_t *z, int b, int t, int c)
{
	each_strip(strip_all, zbar, z, b, t, c);
}

void k_sequence_mean_bwd(act_t *dz, const act_t *dzbar, int b, int t, int c)
{
	each_strip(strip_all, dz, dzbar, b, t, c);
}

void k_head_gate_fwd(act_t *gamma, const act_t *z, size_t n, double alpha)
{
	const act_t p = alpha, q = 1 - alpha;

#pragma omp simd
	for (size_t i = 0; i < n; i++)
		gamma[i] = q + p * r_sigmoid(z[i]);
}

/* alpha g (1 - g) = u (alpha - u) / alpha with u = gamma - (1 - alpha) = alpha g */
void k_head_gate_bwd(act_t *dz, const act_t *gamma, const act_t *dgamma, size_t n, double alpha)
{
	const act_t p = alpha, q = 1 - alpha, inv = alpha ? 1 / alpha : 0;

#pragma omp simd
	for (size_t i = 0; i < n; i++) {
		act_t u = gamma[i] - q;

		dz[i] = dgamma[i] * u * (p - u) * inv;
	}
}
