// SPDX-License-Identifier: MIT
/*
 * The affine maps around a learned bottleneck: softplus of the scales is made once a
 * call, sums over rows stand in strips of columns, one thread each.
 */
#include "kernels_splice.h"
#include "math.h"
#include "tile.h"

enum {
	SPLIT_MIN = 16384,	/* elements below which threads cost more than they gain */
	STRIP = 64,		/* columns that one thread sums */
	GROUP = 64,		/* rows summed in acc_t; the groups in double */
};

#define TINY 1e-12		/* beside |c|^2, which may be 0 */

/* softplus(x), in double: above 0 without an overflow, below without a cancellation */
static double softplus(double x)
{
	return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

/* The map's sigma and 1 / sigma: [2][r] of the calling thread. */
static const acc_t *sigmas(const struct splice *s)
{
	acc_t *sigma = tile_scratch(2 * (size_t)s->r);

	for (int j = 0; j < s->r; j++) {
		double x = softplus(s->scale[j]);

		sigma[j] = x;
		sigma[s->r + j] = 1 / x;
	}
	return sigma;
}

/* y = x mul + add, + beta y; @add NULL: 0 */
static void affine(act_t *y, const act_t *x, const acc_t *mul, const acc_t *add, acc_t beta,
		   const struct splice *s)
{
#pragma omp parallel for schedule(static) if ((long)s->n * s->r >= SPLIT_MIN)
	for (long i = 0; i < s->n; i++) {
		act_t *to = y + i * s->r;
		const act_t *from = x + i * s->r;

		for (int j = 0; j < s->r; j++) {
			acc_t sum = load(from[j]) * mul[j] + (add ? add[j] : 0);

			to[j] = store(beta != 0 ? sum + beta * load(to[j]) : sum);
		}
	}
}

void k_splice_in(act_t *u, const act_t *c, const struct splice *s)
{
	affine(u, c, sigmas(s), s->shift, 0, s);
}

void k_splice_out(act_t *chat, const act_t *e, const struct splice *s)
{
	const acc_t *inv = sigmas(s) + s->r, *shift = s->shift;

#pragma omp parallel for schedule(static) if ((long)s->n * s->r >= SPLIT_MIN)
	for (long i = 0; i < s->n; i++)
#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < s->r; j++)
			chat[i * s->r + j] = store((load(e[i * s->r + j]) - shift[j]) * inv[j]);
}

void k_splice_divide(act_t *y, const act_t *x, const struct splice *s)
{
	affine(y, x, sigmas(s) + s->r, NULL, 0, s);
}

void k_splice_multiply(act_t *y, const act_t *x, double beta, const struct splice *s)
{
	affine(y, x, sigmas(s), NULL, beta, s);
}

/* Of columns [j0, j0 + width): sums of du, dĉ, du c and dĉ ĉ. */
static void grad_sums(double total[4][STRIP], const act_t *c, const act_t *du, const act_t *chat,
		      const act_t *dchat, const struct splice *s, int j0, int width)
{
	memset(total, 0, 4 * sizeof(total[0]));
	for (int i0 = 0; i0 < s->n; i0 += GROUP) {
		acc_t sum[4][STRIP] = { 0 };

		for (long i = i0; i < MIN(i0 + GROUP, s->n); i++) {
			long at = i * s->r + j0;

			for (int j = 0; j < width; j++) {
				acc_t in = load(du[at + j]), out = load(dchat[at + j]);

				sum[0][j] += in;
				sum[1][j] += out;
				sum[2][j] += in * load(c[at + j]);
				sum[3][j] += out * load(chat[at + j]);
			}
		}
		for (int k = 0; k < 4; k++)
			for (int j = 0; j < width; j++)
				total[k][j] += sum[k][j];
	}
}

/* d softplus(x) / dx = sigmoid(x) */
void k_splice_grad(grad_t *dscale, grad_t *dshift, const act_t *c, const act_t *du,
		   const act_t *chat, const act_t *dchat, const struct splice *s)
{
#pragma omp parallel for schedule(static) if ((long)s->n * s->r >= SPLIT_MIN)
	for (int j0 = 0; j0 < s->r; j0 += STRIP) {
		int width = MIN(STRIP, s->r - j0);
		double total[4][STRIP];

		grad_sums(total, c, du, chat, dchat, s, j0, width);
		for (int j = 0; j < width; j++) {
			double x = s->scale[j0 + j], sigma = softplus(x);

			dshift[j0 + j] = total[0][j] - total[1][j] / sigma;
			dscale[j0 + j] = (total[2][j] - total[3][j] / sigma) / (1 + exp(-x));
		}
	}
}

/* |c - ĉ|^2 and |c|^2 + TINY of a row */
static void row_error(double *off, double *size, const act_t *c, const act_t *chat, int r)
{
	acc_t a = 0, b = 0;

#pragma omp simd simdlen(LANES_WIDE) reduction(+ : a, b)
	for (int j = 0; j < r; j++) {
		acc_t x = load(c[j]), d = x - load(chat[j]);

		a += d * d;
		b += x * x;
	}
	*off = a;
	*size = b + TINY;
}

/* Groups of rows add up to @dst in order. */
void k_splice_error(double *dst, double beta, const act_t *c, const act_t *chat, double weight,
		    int n, int r)
{
	double sum = 0;

#pragma omp parallel for ordered schedule(static, 1) if ((long)n * r >= SPLIT_MIN)
	for (int i0 = 0; i0 < n; i0 += GROUP) {
		double group = 0, off, size;

		for (long i = i0; i < MIN(i0 + GROUP, n); i++) {
			row_error(&off, &size, c + i * r, chat + i * r, r);
			group += off / size;
		}
#pragma omp ordered
		sum += group;
	}
	*dst = weight * sum + (beta != 0 ? beta * *dst : 0);
}

void k_splice_error_bwd(act_t *dc, act_t *dchat, const act_t *c, const act_t *chat, double weight,
			int n, int r)
{
#pragma omp parallel for schedule(static) if ((long)n * r >= SPLIT_MIN)
	for (long i = 0; i < n; i++) {
		const act_t *x = c + i * r, *y = chat + i * r;
		act_t *dx = dc + i * r, *dy = dchat + i * r;
		double off, size;
		acc_t one, all;

		row_error(&off, &size, x, y, r);
		one = 2 * weight / size;
		all = one * (off / size);
#pragma omp simd simdlen(LANES_WIDE)
		for (int j = 0; j < r; j++) {
			acc_t d = one * (load(x[j]) - load(y[j]));

			dx[j] = store(d - all * load(x[j]));
			dy[j] = store(load(dy[j]) - d);
		}
	}
}
