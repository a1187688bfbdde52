/* SPDX-License-Identifier: MIT */
/* Helpers of the model tests: guarded buffers, random fills, comparisons. */
#ifndef TENON_CHECK_H
#define TENON_CHECK_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "device.h"
#include "model.h"
#include "real.h"
#include "tap.h"
#include "util.h"

enum { GUARD = TENSOR_ALIGN };	/* guard bytes on either side of a buffer */
#define GUARD_BYTE 0xA5

/*
 * A buffer of n bytes, every byte 0xFF (NaN in any float type), so that whoever
 * reads what nobody wrote is found out, between two guards.
 */
static inline void *guarded_alloc(size_t n)
{
	char *p = aligned_alloc(TENSOR_ALIGN, ROUND_UP(n, TENSOR_ALIGN) + 2 * GUARD);

	memset(p, GUARD_BYTE, ROUND_UP(n, TENSOR_ALIGN) + 2 * GUARD);
	memset(p + GUARD, 0xFF, n);
	return p + GUARD;
}

static inline bool guards_whole(const void *buf, size_t n)
{
	const unsigned char *p = (const unsigned char *)buf;

	for (int i = 1; i <= GUARD; i++)
		if (p[-i] != GUARD_BYTE || p[n - 1 + i] != GUARD_BYTE)
			return false;
	return true;
}

static inline void guarded_free(void *p)
{
	free((char *)p - GUARD);
}

static inline void fill_normal(act_t *x, size_t n, const char *stream, double mean, double sd)
{
	for (size_t i = 0; i < n; i++)
		x[i] = act(mean + sd * rng_normal(42, hash_name(stream), i));
}

static inline void fill_normal_acc(acc_t *x, size_t n, const char *stream, double mean, double sd)
{
	for (size_t i = 0; i < n; i++)
		x[i] = (acc_t)(mean + sd * rng_normal(42, hash_name(stream), i));
}

/* Weights at which every path carries signal: 1/sqrt(fan_in), norms and scalars near 1. */
static inline void fill_param(const struct param *p, void *w, const char *name)
{
	double mean = p->init == init_one ? 1 : 0;
	double sd = p->ndim > 1 ? 1 / sqrt(p->dims[p->ndim - 1]) : 0.1;

	if (p->flags & WIDE)
		fill_normal_acc(w, param_numel(p), name, mean, sd);
	else
		fill_normal(w, param_numel(p), name, mean, sd);
}

/*
 * Two ways to one sum of at most F terms differ by about sqrt(F) eps per layer; 1e-11
 * in double and 2e-4 in float leave two decades. Relative to the largest value. In bf16
 * a sum that ends near the middle between two values is rounded to either, and what
 * follows carries that on: four activations on the way through each sub-layer, each off
 * by two roundings at most, adding up as their root.
 */
#define SAME_TOL (IS_ENABLED(CONFIG_REAL_DOUBLE) ? 1e-11 : \
		  ACT == ACC ? 2e-4 : 2 * ACT_ROUND * sqrt(4 * NR_SUB))

/*
 * What is made again in backward is what forward left, bit for bit; but a GPU's library
 * takes GELU before it rounds the argument that it saves: one rounding of the argument,
 * where |gelu'| < 1.2, and one of the result, relative to the norm of the whole. In float
 * the two GELUs differ, each by few roundings.
 */
#define AGAIN_TOL (!IS_ENABLED(CONFIG_ARCH_CUDA) ? 0 : ACT == ACC ? 8 * 0x1p-23 : 2.2 * ACT_ROUND)

/* Of two pieces of memory, as ACT or ACC. */
static inline double dot_of(const void *a, const void *b, size_t elem, size_t n)
{
	double sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += get(a, elem, i) * get(b, elem, i);
	return sum;
}

/* ||a - b|| <= tol ||b||; 0: the same bits. What nobody wrote in either is left out. */
static inline bool agree(const void *a, const void *b, size_t elem, size_t n, double tol)
{
	double off = 0, size = 0;

	if (!tol)
		return !memcmp(a, b, n * elem);
	for (size_t i = 0; i < n; i++) {
		double x = get(a, elem, i), y = get(b, elem, i);

		if (isnan(x) && isnan(y))
			continue;
		off += (x - y) * (x - y);
		size += y * y;
	}
	return off <= tol * tol * size;
}

static inline double dot(const acc_t *a, const acc_t *b, size_t n)
{
	return dot_of(a, b, ACC, n);
}

/* A random direction of norm 1. */
static inline acc_t *direction(size_t n, const char *stream)
{
	acc_t *d = xmalloc(n * sizeof(*d));
	double norm;

	fill_normal_acc(d, n, stream, 0, 1);
	norm = sqrt(dot(d, d, n));
	for (size_t i = 0; i < n; i++)
		d[i] = (acc_t)(d[i] / norm);
	return d;
}

static inline bool all_finite(const acc_t *x, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!isfinite(x[i]))
			return false;
	return true;
}

/*
 * Finite differences: |fd - <g,d>| <= FD_TOL ||g||. Central with h = FD_STEP: the
 * truncation is h^2 f'''/6 ~ 1e-10, round-off eps f/h ~ 1e-10; two decades are left
 * for a gradient of norm 1e-2, none for one of FD_FLOOR, which stands for smaller ones
 * (a query's gradient is exactly 0 where it sees one key). An RMSNorm of few elements is
 * nearly a sign: where they are about sqrt(NORM_EPSILON) the truncation is h^2 / (2 NORM_EPSILON)
 * of the slope, 5e-5. Differences of h and 2h together (Richardson) have none of that order,
 * and the round-off of h; those of 4h and 8h have a quarter of that.
 */
#define FD_STEP 1e-5
#define FD_TOL 1e-6
#define FD_FLOOR 1e-4

/* The objective of one finite difference, and what it is called with. */
typedef double (*objective_fn)(void *ctx);

/* Along d, from @old and back: the central difference of step @h. */
static inline double fd_slope(objective_fn f, void *ctx, acc_t *x, const acc_t *old,
			      const acc_t *d, size_t n, double h)
{
	double up, down;

	for (size_t i = 0; i < n; i++)
		x[i] = old[i] + h * d[i];
	up = f(ctx);
	for (size_t i = 0; i < n; i++)
		x[i] = old[i] - h * d[i];
	down = f(ctx);
	memcpy(x, old, n * sizeof(*x));
	return (up - down) / (2 * h);
}

static inline bool fd_agrees(objective_fn f, void *ctx, acc_t *x, const grad_t *g, size_t n,
			     const char *stream, double *error)
{
	acc_t *d = direction(n, stream), *old = xmalloc(n * sizeof(*old));
	double slope = dot(g, d, n), size = MAX(sqrt(dot(g, g, n)), FD_FLOOR), h = FD_STEP, fd;

	memcpy(old, x, n * sizeof(*x));
	fd = fd_slope(f, ctx, x, old, d, n, h);
	*error = fabs(fd - slope) / size;
	for (int turn = 0; turn < 2 && *error > FD_TOL; turn++, h *= 4) {
		fd = fd_slope(f, ctx, x, old, d, n, h);
		fd = (4 * fd - fd_slope(f, ctx, x, old, d, n, 2 * h)) / 3;
		*error = fabs(fd - slope) / size;
	}
	free(old);
	free(d);
	return *error <= FD_TOL;
}

#endif
