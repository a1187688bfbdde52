/* SPDX-License-Identifier: MIT */
/* Helpers of the kernel tests: guarded outputs, runs with several thread counts. */
#ifndef TENON_TEST_KERNEL_H
#define TENON_TEST_KERNEL_H

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "kernels.h"
#include "real.h"
#include "tap.h"
#include "util.h"

/* Relative error of one rounding of acc_t. */
#define UNIT (sizeof(acc_t) == sizeof(double) ? 0x1p-53 : 0x1p-24)

/*
 * A sum of n terms in any order errs by at most (n - 1) UNIT sum |term|, each product
 * and the final scaling by one more (Higham 2002, section 3.1). The reference is in
 * double: in a double build it errs as much again.
 */
#define SUM_TOL(n) (2 * ((n) + 8) * UNIT)

/*
 * A value made by a handful of operations and one or two exponentials (2e-7, 4e-16
 * relative, arch/cpu/math.h), whose intermediate results are about as large.
 */
#define ELEMENT_TOL (32 * UNIT)

enum { KERNEL_GUARD = 64 };	/* bytes on either side of a buffer */
#define KERNEL_GUARD_BYTE 0x5A

/* An output: what it holds before the call (NULL: NaN, it must be overwritten). */
struct out {
	void *x;
	size_t bytes;
	const void *before;
};

static inline void *guarded(size_t bytes)
{
	char *p = aligned_alloc(KERNEL_GUARD, ROUND_UP(bytes, KERNEL_GUARD) + 2 * KERNEL_GUARD);

	if (!p)
		die("no memory for %zu bytes", bytes);
	memset(p, KERNEL_GUARD_BYTE, ROUND_UP(bytes, KERNEL_GUARD) + 2 * KERNEL_GUARD);
	memset(p + KERNEL_GUARD, 0xFF, bytes);
	return p + KERNEL_GUARD;
}

static inline void unguard(void *p)
{
	free((char *)p - KERNEL_GUARD);
}

static inline bool guard_whole(const struct out *o)
{
	const unsigned char *p = o->x;

	for (int i = 0; i < KERNEL_GUARD; i++)
		if (p[-1 - i] != KERNEL_GUARD_BYTE || p[o->bytes + i] != KERNEL_GUARD_BYTE)
			return false;
	return true;
}

/* Unused elements behind a row of @width; where it is wide the next one is aligned, too. */
static inline int row_gap(int width)
{
	return width % 8 ? 3 : 8;
}

/* @n normal numbers; every call draws others. */
static inline act_t *normals(size_t n)
{
	static uint64_t stream;
	act_t *x = guarded(n * sizeof(*x));

	stream++;
	for (size_t i = 0; i < n; i++)
		x[i] = act(rng_normal(7, stream, i));
	return x;
}

static inline acc_t *normals_acc(size_t n)
{
	static uint64_t stream = 1 << 20;
	acc_t *x = guarded(n * sizeof(*x));

	stream++;
	for (size_t i = 0; i < n; i++)
		x[i] = (acc_t)rng_normal(7, stream, i);
	return x;
}

/*
 * Call with 1, 2, 3 and again 2 threads, on a GPU as often: the same bits, guards whole.
 * The outputs hold the result afterwards.
 */
static inline bool threads_agree(void (*call)(void), struct out *out, int nr)
{
	static const int threads[] = { 1, 2, 3, 2 };
	void *first[8];
	bool same = true;

	for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
		for (int o = 0; o < nr; o++)
			if (out[o].before)
				memcpy(out[o].x, out[o].before, out[o].bytes);
			else
				memset(out[o].x, 0xFF, out[o].bytes);
		omp_set_num_threads(threads[i]);
		call();
		arch_sync();
		for (int o = 0; o < nr; o++) {
			if (!i)
				first[o] = memcpy(xmalloc(out[o].bytes), out[o].x, out[o].bytes);
			same &= !memcmp(first[o], out[o].x, out[o].bytes) && guard_whole(&out[o]);
		}
	}
	for (int o = 0; o < nr; o++)
		free(first[o]);
	return same;
}

/* One element: |x - want| <= tol * size. NaN never passes. */
static inline bool near(double x, double want, double size, double tol)
{
	if (fabs(x - want) <= tol * size)
		return true;
	diag("got %.17g, want %.17g, off by %.3g of %.3g allowed", x, want, fabs(x - want),
	     tol * size);
	return false;
}

/*
 * An activation: beside the error of its sum it was rounded once, so that it errs by no
 * more than the nearest activation to the right value, and that sum's error, would.
 */
static inline bool near_act(act_t x, double want, double size, double tol)
{
	return near(real(x), want, tol * size + ACT_ROUND * (fabs(want) + tol * size), 1);
}

#endif
