// SPDX-License-Identifier: MIT
/*
 * What linear RNNs do element by element, before and behind their recurrence. Sums over
 * rows stand in strips of columns, or in heads, one thread each.
 */
#include "kernels_linattn.h"
#include "math.h"

enum {
	BLOCK = 4096,		/* elements, as in act.c */
	SPLIT_MIN = 16384,	/* elements below which threads cost more than they gain */
	STRIP = 64,		/* columns that one thread sums */
	GROUP = 64,		/* rows summed in acc_t; the groups in double */
};

#define TINY 1e-12		/* beside |x|^2, which may be 0 */

void k_log_decay_fwd(acc_t *g, const act_t *z, size_t n, double tau)
{
	const acc_t inv = -1 / tau;

#pragma omp parallel for schedule(static) if (n >= SPLIT_MIN)
	for (size_t i = 0; i < n; i += BLOCK)
#pragma omp simd simdlen(LANES_WIDE)
		for (size_t j = i; j < MIN(i + BLOCK, n); j++)
			g[j] = r_softplus(-load(z[j])) * inv;
}

void k_log_decay_bwd(act_t *dz, const acc_t *dg, const act_t *z, size_t n, double tau)
{
	const acc_t inv = 1 / tau;

#pragma omp parallel for schedule(static) if (n >= SPLIT_MIN)
	for (size_t i = 0; i < n; i += BLOCK)
#pragma omp simd simdlen(LANES_WIDE)
		for (size_t j = i; j < MIN(i + BLOCK, n); j++)
			dz[j] = store(dg[j] * r_sigmoid(-load(z[j])) * inv);
}

static acc_t row_dot(const act_t *x, const act_t *y, int n)
{
	acc_t sum = 0;

#pragma omp simd reduction(+ : sum)
	for (int j = 0; j < n; j++)
		sum += load(x[j]) * load(y[j]);
	return sum;
}

void k_unit_fwd(act_t *y, const act_t *x, int n, int width)
{
#pragma omp parallel for schedule(static) if ((long)n * width >= SPLIT_MIN)
	for (int i = 0; i < n; i++) {
		const act_t *from = x + (long)i * width;
		act_t *to = y + (long)i * width;
		acc_t r = 1 / r_sqrt(row_dot(from, from, width) + (acc_t)TINY);

#pragma omp simd
		for (int j = 0; j < width; j++)
			to[j] = store(load(from[j]) * r);
	}
}

/* dx = r (dy - y <y, dy>) */
void k_unit_bwd(act_t *dx, const act_t *dy, const act_t *x, int n, int width)
{
#pragma omp parallel for schedule(static) if ((long)n * width >= SPLIT_MIN)
	for (int i = 0; i < n; i++) {
		const act_t *from = x + (long)i * width, *d = dy + (long)i * width;
		act_t *to = dx + (long)i * width;
		acc_t r = 1 / r_sqrt(row_dot(from, from, width) + (acc_t)TINY);
		acc_t along = row_dot(from, d, width) * r * r;

#pragma omp simd
		for (int j = 0; j < width; j++)
			to[j] = store(r * (load(d[j]) - load(from[j]) * along));
	}
}

/* ---- selective state spaces ------------------------------------------------------- */

void k_ssm_fwd(const struct ssm *a, act_t *v)
{
	long width = (long)a->heads * a->p;

#pragma omp parallel for schedule(static) if (a->n * width >= SPLIT_MIN)
	for (long i = 0; i < a->n; i++) {
		acc_t *dt = a->dt + i * a->heads, *g = a->g + i * a->heads;

		for (int h = 0; h < a->heads; h++) {
			const act_t *x = a->x + i * a->x_row + (long)h * a->p;
			act_t *y = v + i * width + (long)h * a->p;

			dt[h] = r_softplus(load(a->raw[i * a->raw_row + h]) + a->dt_bias[h]);
			g[h] = -dt[h] * r_exp(a->a_log[h]);
#pragma omp simd
			for (int e = 0; e < a->p; e++)
				y[e] = store(dt[h] * load(x[e]));
		}
	}
}

void k_ssm_skip(const struct ssm *a, act_t *y, const act_t *o)
{
	long width = (long)a->heads * a->p;

#pragma omp parallel for schedule(static) if (a->n * width >= SPLIT_MIN)
	for (long i = 0; i < a->n; i++)
		for (int h = 0; h < a->heads; h++) {
			const act_t *x = a->x + i * a->x_row + (long)h * a->p;
			long at = i * width + (long)h * a->p;

#pragma omp simd
			for (int e = 0; e < a->p; e++)
				y[at + e] = store(load(o[at + e]) + a->d[h] * load(x[e]));
		}
}

/* dx and draw of one row of one head; its parts of the sums: ddt_bias, da_log, dd */
static void ssm_row(acc_t sum[3], const struct ssm *a, const struct ssm_grad *d, long i, int h)
{
	long at = (i * a->heads + h) * a->p, row = i * a->heads + h;
	const act_t *x = a->x + i * a->x_row + (long)h * a->p;
	act_t *dx = d->dx + i * a->x_row + (long)h * a->p;
	acc_t dt = a->dt[row], skip = a->d[h], raw, ddt;

	ddt = row_dot(d->dv + at, x, a->p) - d->dg[row] * r_exp(a->a_log[h]);
	raw = ddt * r_sigmoid(load(a->raw[i * a->raw_row + h]) + a->dt_bias[h]);
	sum[0] += raw;
	sum[1] += d->dg[row] * a->g[row];
	sum[2] += row_dot(d->dy + at, x, a->p);
	d->draw[i * a->raw_row + h] = store(raw);
#pragma omp simd
	for (int e = 0; e < a->p; e++)
		dx[e] = store(dt * load(d->dv[at + e]) + skip * load(d->dy[at + e]));
}

void k_ssm_bwd(const struct ssm *a, const struct ssm_grad *d)
{
#pragma omp parallel for schedule(static) if ((long)a->n * a->heads * a->p >= SPLIT_MIN)
	for (int h = 0; h < a->heads; h++) {
		double total[3] = { 0 };

		for (int i0 = 0; i0 < a->n; i0 += GROUP) {
			acc_t sum[3] = { 0 };

			for (int i = i0; i < MIN(i0 + GROUP, a->n); i++)
				ssm_row(sum, a, d, i, h);
			for (int k = 0; k < 3; k++)
				total[k] += sum[k];
		}
		d->ddt_bias[h] = total[0];
		d->da_log[h] = total[1];
		d->dd[h] = total[2];
	}
}

/* ---- gated norm ------------------------------------------------------------------- */

/* Element @j of what is normalised. */
static inline acc_t norm_input(const act_t *x, const act_t *z, int j)
{
	return z ? load(x[j]) * r_silu(load(z[j])) : load(x[j]);
}

/* One group: @z is NULL where there is no gate. */
static void group_fwd(const struct gated_norm *a, act_t *y, acc_t *rstd, const act_t *x,
		      const act_t *z, const acc_t *w)
{
	const act_t *before = a->gate_first ? z : NULL, *behind = a->gate_first ? NULL : z;
	acc_t sum = 0, r = 1;

	if (w) {
#pragma omp simd simdlen(LANES_WIDE) reduction(+ : sum)
		for (int j = 0; j < a->width; j++)
			sum += norm_input(x, before, j) * norm_input(x, before, j);
		r = *rstd = 1 / sqrt(sum / (double)a->width + a->epsilon);
	}
#pragma omp simd simdlen(LANES_WIDE)
	for (int j = 0; j < a->width; j++) {
		acc_t one = norm_input(x, before, j) * (w ? r * w[j] : 1);

		y[j] = store(behind ? one * r_silu(load(behind[j])) : one);
	}
}

void k_gated_norm_fwd(const struct gated_norm *a)
{
#pragma omp parallel for schedule(static) if ((long)a->n * a->groups * a->width >= SPLIT_MIN)
	for (long i = 0; i < a->n; i++)
		for (int g = 0; g < a->groups; g++) {
			long group = i * a->groups + g, at = group * a->width;

			group_fwd(a, a->y + at, a->w ? a->rstd + group : NULL, a->x + at,
				  a->z ? a->z + i * a->z_row + (long)g * a->width : NULL,
				  a->w ? a->w + g * a->w_group : NULL);
		}
}

/* The gradient of element @j behind norm and weight: dy, through a gate that stands there. */
static inline acc_t norm_grad(const act_t *dy, const act_t *behind, int j)
{
	return behind ? load(dy[j]) * r_silu(load(behind[j])) : load(dy[j]);
}

static void group_bwd(const struct gated_norm *a, act_t *dx, act_t *dz, acc_t r, const act_t *x,
		      const act_t *z, const acc_t *w, const act_t *dy)
{
	const act_t *before = a->gate_first ? z : NULL, *behind = a->gate_first ? NULL : z;
	acc_t dot = 0;

	if (w) {
#pragma omp simd simdlen(LANES_WIDE) reduction(+ : dot)
		for (int j = 0; j < a->width; j++)
			dot += norm_grad(dy, behind, j) * w[j] * norm_input(x, before, j);
		dot *= r * r / a->width;
	}
#pragma omp simd simdlen(LANES_WIDE)
	for (int j = 0; j < a->width; j++) {
		acc_t in = norm_input(x, before, j), factor = w ? r * w[j] : 1;
		acc_t g = norm_grad(dy, behind, j) * factor - (w ? r * in * dot : 0);
		acc_t value = load(x[j]), d = load(dy[j]);

		if (behind)
			dz[j] = store(d * in * factor * r_silu_grad(load(z[j])));
		else if (before)
			dz[j] = store(g * value * r_silu_grad(load(z[j])));
		dx[j] = store(before ? g * r_silu(load(z[j])) : g);
	}
}

/* Of columns [j0, j0 + n) of the weight of group @g, or of all groups where they share it. */
static void weight_strip(const struct gated_norm *a, grad_t *dw, const act_t *dy, int g, int j0,
			 int n)
{
	int from = a->w_group ? g : 0, to = a->w_group ? g + 1 : a->groups;
	double total[STRIP] = { 0 };

	for (int i0 = 0; i0 < a->n; i0 += GROUP) {
		acc_t sum[STRIP] = { 0 };

		for (long i = i0; i < MIN(i0 + GROUP, a->n); i++)
			for (int h = from; h < to; h++) {
				long group = i * a->groups + h, at = group * a->width + j0;
				const act_t *z = a->z ? a->z + i * a->z_row + (long)h * a->width + j0 :
							NULL;
				acc_t r = a->rstd[group];

#pragma omp simd simdlen(LANES_WIDE)
				for (int j = 0; j < n; j++)
					sum[j] += norm_grad(dy + at, z, j) * load(a->x[at + j]) * r;
			}
		for (int j = 0; j < n; j++)
			total[j] += sum[j];
	}
	for (int j = 0; j < n; j++)
		dw[g * a->w_group + j0 + j] = total[j];
}

void k_gated_norm_bwd(const struct gated_norm *a, act_t *dx, act_t *dz, grad_t *dw,
		      const act_t *dy)
{
	int groups = !a->w ? 0 : a->w_group ? a->groups : 1;
	long size = (long)a->n * a->groups * a->width;

	/* dx may be dy: the weights' gradient goes first */
#pragma omp parallel for collapse(2) schedule(static) if (size >= SPLIT_MIN)
	for (int g = 0; g < groups; g++)
		for (int j = 0; j < a->width; j += STRIP)
			weight_strip(a, dw, dy, g, j, MIN(STRIP, a->width - j));
#pragma omp parallel for schedule(static) if (size >= SPLIT_MIN)
	for (long i = 0; i < a->n; i++)
		for (int g = 0; g < a->groups; g++) {
			long group = i * a->groups + g, at = group * a->width;
			long gate = i * a->z_row + (long)g * a->width;

			group_bwd(a, dx + at, dz ? dz + gate : NULL, a->w ? a->rstd[group] : 1,
				  a->x + at, a->z ? a->z + gate : NULL,
				  a->w ? a->w + g * a->w_group : NULL, dy + at);
		}
}
