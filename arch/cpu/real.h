/* SPDX-License-Identifier: MIT */
/**
 * DOC: numbers in memory and in registers
 *
 * Kernels calculate in acc_t. What they read and write is act_t: the same type, or
 * bf16, the upper half of a float. load() is exact; store() rounds to nearest, ties to
 * even, once for each value written. Where both types are one they are nothing.
 */
#ifndef TENON_CPU_REAL_H
#define TENON_CPU_REAL_H

#include <string.h>

#include "types.h"

/* Is what kernels write rounded? Then sums need a place of their own. */
enum { NARROW = sizeof(act_t) != sizeof(acc_t) };

#ifdef CONFIG_REAL_BF16

/** load() - x, exactly */
static inline acc_t load(act_t x)
{
	uint32_t u = (uint32_t)x.bits << 16;
	acc_t y;

	memcpy(&y, &u, sizeof(y));
	return y;
}

/** store() - x rounded; NaN stays NaN */
static inline act_t store(acc_t x)
{
	uint32_t u, even;

	memcpy(&u, &x, sizeof(u));
	even = u + 0x7fff + (u >> 16 & 1);
	u = x == x ? even : u | 0x400000;
	return (act_t){ u >> 16 };
}

#else

static inline acc_t load(act_t x)
{
	return x;
}

static inline act_t store(acc_t x)
{
	return x;
}

#endif

/** store_row() - y[i] = x[i] rounded; nothing where it is its own sum */
static inline void store_row(act_t *y, const acc_t *x, long n)
{
	if (!NARROW && (const void *)y == x)
		return;
#pragma omp simd
	for (long i = 0; i < n; i++)
		y[i] = store(x[i]);
}

#endif
