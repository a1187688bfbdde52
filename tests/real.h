/* SPDX-License-Identifier: MIT */
/*
 * Numbers of kernels for tests, which calculate in double: activations may be bf16. The
 * rounding here is told by comparing neighbours, not by the bits that kernels add.
 */
#ifndef TENON_TEST_REAL_H
#define TENON_TEST_REAL_H

#include <math.h>
#include <string.h>

#include "types.h"

/* Which of the two a piece of memory holds: bytes of an element. */
enum { ACT = sizeof(act_t), ACC = sizeof(acc_t) };

/* Relative error of one rounding to bf16; other activations are as the sums are. */
#define ACT_ROUND (sizeof(act_t) == sizeof(acc_t) ? 0 : 0x1p-8)

#ifdef CONFIG_REAL_BF16
static inline double real(act_t x)
{
	uint32_t u = (uint32_t)x.bits << 16;
	float y;

	memcpy(&y, &u, sizeof(y));
	return y;
}

/* The nearer of the two neighbours of @x; of two as near, the even one. */
static inline act_t act(double x)
{
	float down = x;
	uint32_t u;
	act_t low, high;

	memcpy(&u, &down, sizeof(u));
	low.bits = u >> 16;
	if (isnan(x))
		low.bits |= 0x40;
	if (isnan(x) || real(low) == x)
		return low;
	high.bits = low.bits + 1;
	if (fabs(real(high) - x) != fabs(x - real(low)))
		return fabs(real(high) - x) < fabs(x - real(low)) ? high : low;
	return low.bits % 2 ? high : low;
}
#else
static inline double real(act_t x)
{
	return x;
}

static inline act_t act(double x)
{
	return (act_t)x;
}
#endif

/* Element @i of memory whose elements have @elem bytes. */
static inline double get(const void *x, size_t elem, size_t i)
{
	return elem == ACC ? (double)((const acc_t *)x)[i] : real(((const act_t *)x)[i]);
}

static inline void put(void *x, size_t elem, size_t i, double value)
{
	if (elem == ACC)
		((acc_t *)x)[i] = (acc_t)value;
	else
		((act_t *)x)[i] = act(value);
}

#endif
