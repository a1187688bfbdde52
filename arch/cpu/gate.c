// SPDX-License-Identifier: MIT
/*
 * Pooling over positions, and factors of heads from pooled values.
 *
 * Sums over positions run in double, one strip of columns of one sequence per
 * thread, in the order of the positions (backward: from the last to the first).
 */
#include <string.h>

#include "kernels_gate.h"
#include "math.h"
#include "tile.h"
#include "util.h"

enum {
	SPLIT_MIN = 16384,	/* elements below which threads cost more than they gain */
	STRIP = 64,		/* columns that one thread sums */
	ROWS = 128,		/* rows whose weight gradient is summed in acc_t */
};

/* y_t = mean of x_0..x_t */
static void strip_mean(acc_t *y, const acc_t *x, int t, int c, int width)
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
static void strip_mean_bwd(acc_t *dx, const acc_t *dy, int t, int c, int width)
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
static void strip_all(acc_t *y, const acc_t *x, int t, int c, int width)
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

typedef void strip_fn(acc_t *y, const acc_t *x, int t, int c, int width);

static void each_strip(strip_fn *f, acc_t *y, const acc_t *x, int b, int t, int c)
{
#pragma omp parallel for collapse(2) schedule(static) if ((long)b * t * c >= SPLIT_MIN)
	for (int i = 0; i < b; i++)
		for (int j = 0; j < c; j += STRIP)
			f(y + (long)i * t * c + j, x + (long)i * t * c + j, t, c,
			  MIN(STRIP, c - j));
}

void k_causal_mean_fwd(acc_t *zbar, const acc_t *z, int b, int t, int c)
{
	each_strip(strip_mean, zbar, z, b, t, c);
}

void k_causal_mean_bwd(acc_t *dz, const acc_t *dzbar, int b, int t, int c)
{
	each_strip(strip_mean_bwd, dz, dzbar, b, t, c);
}

void k_sequence_mean_fwd(acc_t *zbar, const acc_t *z, int b, int t, int c)
{
	each_strip(strip_all, zbar, z, b, t, c);
}

void k_sequence_mean_bwd(acc_t *dz, const acc_t *dzbar, int b, int t, int c)
{
	each_strip(strip_all, dz, dzbar, b, t, c);
}

void k_causal_mean_step(acc_t *zbar, acc_t *sum, long sum_seq, const acc_t *z, const int32_t *pos,
			int b, int c)
{
	for (int i = 0; i < b; i++, sum += sum_seq, z += c, zbar += c) {
		acc_t inv = (acc_t)1 / (pos[i] + 1);

		for (int j = 0; j < c; j++) {
			sum[j] = pos[i] ? sum[j] + z[j] : z[j];
			zbar[j] = sum[j] * inv;
		}
	}
}

void k_causal_mean_fill(acc_t *sum, long sum_seq, const acc_t *zbar, const int32_t *len, int b,
			int t, int c)
{
	for (int i = 0; i < b; i++, sum += sum_seq)
		for (int j = 0; j < c; j++)
			sum[j] = len[i] * zbar[((long)i * t + len[i] - 1) * c + j];
}

void k_head_gate_fwd(acc_t *gamma, const acc_t *zbar, const param_t *w, int n, int heads, int c,
		     double alpha)
{
	const acc_t p = alpha, q = 1 - alpha;

#pragma omp parallel for schedule(static) if ((long)n * heads * c >= SPLIT_MIN)
	for (int i = 0; i < n; i++) {
		acc_t *to = gamma + (long)i * heads;

		for (int h = 0; h < heads; h++)
			to[h] = tile_dot_acc(zbar + (long)i * c, w + (long)h * c, c);
		for (int h = 0; h < heads; h++)
			to[h] = q + p * r_sigmoid(to[h]);
	}
}

/* Operands of the backward of a gate; dz = dgamma alpha g (1 - g) before the sigmoid. */
struct gate {
	acc_t *dzbar;
	const acc_t *gamma, *dgamma, *zbar;
	const param_t *w;
	int n, heads, c;
	acc_t alpha;
};

/* alpha g (1 - g) = u (alpha - u) / alpha with u = gamma - (1 - alpha) = alpha g */
static acc_t gate_slope(const struct gate *g, acc_t gamma)
{
	acc_t u = gamma - (1 - g->alpha);

	return g->alpha == 0 ? 0 : u * (g->alpha - u) / g->alpha;
}

/* dzbar of ROWS rows from i0 on, and their part [heads][c] of dw */
static void gate_rows(const struct gate *g, acc_t *part, int i0)
{
	int c = g->c;

	memset(part, 0, (size_t)g->heads * c * sizeof(*part));
	for (int i = i0; i < MIN(i0 + ROWS, g->n); i++) {
		const acc_t *z = g->zbar + (long)i * c;
		acc_t *dz = g->dzbar + (long)i * c;

		memset(dz, 0, c * sizeof(*dz));
		for (int h = 0; h < g->heads; h++) {
			const param_t *w = g->w + (long)h * c;
			acc_t *dw = part + (long)h * c;
			long at = (long)i * g->heads + h;
			acc_t d = g->dgamma[at] * gate_slope(g, g->gamma[at]);

#pragma omp simd
			for (int j = 0; j < c; j++) {
				dz[j] += d * load(w[j]);
				dw[j] += d * z[j];
			}
		}
	}
}

void k_head_gate_bwd(acc_t *dzbar, grad_t *dw, const acc_t *gamma, const acc_t *dgamma,
		     const acc_t *zbar, const param_t *w, int n, int heads, int c, double alpha,
		     void *scratch)
{
	const struct gate g = { dzbar, gamma, dgamma, zbar, w, n, heads, c, alpha };
	long size = (long)heads * c;
	acc_t *part = scratch;

#pragma omp parallel if (n * size >= SPLIT_MIN)
	{
#pragma omp for schedule(static)
		for (int i0 = 0; i0 < n; i0 += ROWS)
			gate_rows(&g, part + i0 / ROWS * size, i0);
#pragma omp for schedule(static)
		for (long j = 0; j < size; j++) {
			double sum = 0;

			for (int i0 = 0; i0 < n; i0 += ROWS)
				sum += part[i0 / ROWS * size + j];
			dw[j] = sum;
		}
	}
}

size_t k_head_gate_scratch(int n, int heads, int c)
{
	return (size_t)(n + ROWS - 1) / ROWS * heads * c * sizeof(acc_t);
}
