/* SPDX-License-Identifier: MIT */
/* SiLU in double, for kernel tests. */
#ifndef TENON_TEST_SILU_H
#define TENON_TEST_SILU_H

#include <math.h>

static inline double sigmoid(double x)
{
	return 1 / (1 + exp(-x));
}

static inline double silu(double x)
{
	return x * sigmoid(x);
}

static inline double silu_grad(double x)
{
	return sigmoid(x) * (1 + x * (1 - sigmoid(x)));
}

#endif
