// SPDX-License-Identifier: MIT
/*
 * One scalar per head between the latent (width l) and the MLP hidden (width fdim):
 * element f belongs to head f heads / fdim and meets latent f mod l.
 */
#include <string.h>

#include "kernels.h"
#include "util.h"

enum { SPLIT_MIN = 16384 };	/* elements below which threads cost more than they gain */

/* A run of elements of one head against consecutive latents. */
struct run {
	int f, len, head, latent;
};

/* The run that starts at element @f. */
static struct run run_at(int f, int fdim, int l, int heads)
{
	int head = (long)f * heads / fdim;
	int head_end = ((long)(head + 1) * fdim + heads - 1) / heads;
	int latent_end = (f / l + 1) * l;

	return (struct run) { f, MIN(MIN(head_end, latent_end), fdim) - f, head, f % l };
}

#define for_each_run(r, fdim, l, heads) \
	for (struct run r = run_at(0, fdim, l, heads); r.f < (fdim); \
	     r = run_at(r.f + r.len, fdim, l, heads))

/* y += factor x */
static void add_scaled(act_t *y, const act_t *x, act_t factor, int n)
{
#pragma omp simd
	for (int i = 0; i < n; i++)
		y[i] += factor * x[i];
}

static act_t dot(const act_t *x, const act_t *y, int n)
{
	act_t sum = 0;

#pragma omp simd reduction(+ : sum)
	for (int i = 0; i < n; i++)
		sum += x[i] * y[i];
	return sum;
}

/* wide[r][f] += factor s[head] narrow[r][f mod l] */
static void spread(act_t *wide, const act_t *narrow, const param_t *s, int n, int fdim, int l,
		   int heads, double factor)
{
#pragma omp parallel for schedule(static) if ((long)n * fdim >= SPLIT_MIN)
	for (int i = 0; i < n; i++)
		for_each_run(r, fdim, l, heads)
			add_scaled(wide + (long)i * fdim + r.f, narrow + (long)i * l + r.latent,
				   factor * s[r.head], r.len);
}

/* narrow[r][j] = factor sum over f mod l = j of s[head] wide[r][f] */
static void fold(act_t *narrow, const act_t *wide, const param_t *s, int n, int fdim, int l,
		 int heads, double factor)
{
#pragma omp parallel for schedule(static) if ((long)n * fdim >= SPLIT_MIN)
	for (int i = 0; i < n; i++) {
		memset(narrow + (long)i * l, 0, l * sizeof(*narrow));
		for_each_run(r, fdim, l, heads)
			add_scaled(narrow + (long)i * l + r.latent, wide + (long)i * fdim + r.f,
				   factor * s[r.head], r.len);
	}
}

/*
 * ds[head] = factor sum over rows and the head's f of wide[r][f] narrow[r][f mod l].
 * A head is one thread's, its rows are summed in ascending order, in double.
 */
static void head_dots(grad_t *ds, const act_t *wide, const act_t *narrow, int n, int fdim, int l,
		      int heads, double factor)
{
#pragma omp parallel for schedule(static) if ((long)n * fdim >= SPLIT_MIN)
	for (int h = 0; h < heads; h++) {
		int first = ((long)h * fdim + heads - 1) / heads;
		double sum = 0;

		for (int i = 0; i < n; i++)
			for (struct run r = run_at(first, fdim, l, heads);
			     r.f < fdim && r.head == h; r = run_at(r.f + r.len, fdim, l, heads))
				sum += dot(wide + (long)i * fdim + r.f,
					   narrow + (long)i * l + r.latent, r.len);
		ds[h] = factor * sum;
	}
}

void k_couple_up_fwd(act_t *h, const act_t *a, const param_t *p, int n, int fdim, int l,
		     int heads, double alpha)
{
	spread(h, a, p, n, fdim, l, heads, alpha);
}

void k_couple_up_bwd(grad_t *dp, act_t *da, const act_t *dh, const act_t *a, const param_t *p,
		     int n, int fdim, int l, int heads, double alpha)
{
	head_dots(dp, dh, a, n, fdim, l, heads, alpha);
	if (da)
		fold(da, dh, p, n, fdim, l, heads, alpha);
}

void k_couple_down_fwd(act_t *c, const act_t *h, const param_t *s, int n, int fdim, int l,
		       int heads)
{
	fold(c, h, s, n, fdim, l, heads, (double)l / fdim);
}

void k_couple_down_bwd(grad_t *ds, act_t *dh, const act_t *dc, const act_t *h, const param_t *s,
		       int n, int fdim, int l, int heads)
{
	head_dots(ds, h, dc, n, fdim, l, heads, (double)l / fdim);
	spread(dh, dc, s, n, fdim, l, heads, (double)l / fdim);
}
