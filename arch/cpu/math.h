/* SPDX-License-Identifier: MIT */
/**
 * DOC: element functions that vectorise
 *
 * Branch-free polynomials in plain C, so that GCC vectorises a loop over them
 * without -ffast-math (libm calls and errno would stop it). Each has a float and
 * a double form; r_X() is the one for acc_t. A value depends on its argument
 * alone: the same bits in a vector loop, its remainder and a scalar call.
 *
 * NaN gives NaN. Relative error below 2e-7 (float) and 4e-16 (double).
 */
#ifndef TENON_CPU_MATH_H
#define TENON_CPU_MATH_H

#include <math.h>
#include <string.h>

#include "real.h"
#include "util.h"

/*
 * Declared again without their side effect on errno, so that a loop over them
 * becomes vector instructions.
 */
float sqrtf(float x) __attribute__((const));
double sqrt(double x) __attribute__((const));

/*
 * Lanes to ask for in a loop of much arithmetic: simdlen(LANES_WIDE). GCC prefers
 * vectors of 32 bytes where the processor also has 64; a processor that has neither
 * gets what it has.
 */
#define LANES_WIDE (64 / sizeof(acc_t))

#define R_IS_DOUBLE (sizeof(acc_t) == sizeof(double))

/*
 * exp(x) = 2^n e^r, n = x / ln 2 rounded, |r| <= ln(2) / 2, e^r by its Taylor
 * series. ln 2 is cut in two (Cody and Waite 1980) so that n times the first part
 * is exact. Adding 1.5 * 2^23 rounds to an integer that then stands in the low
 * bits of the sum. 2^(n-1) is made from n's bits and the series is doubled, so
 * that n = 128 needs no special case; at n = -126 the bits are those of 0.
 *
 * x is clamped as an integer: of numbers with their sign bit set, a more negative
 * one is larger unsigned; of the others, a larger one is larger signed. Two
 * comparisons of floats in a row would be turned into branches again.
 */
#define EXP_F32_LOW 0xc2aecccdu		/* -87.4 */
#define EXP_F32_HIGH 0x42b20000		/* 89 */
#define EXP_F32_LN2_HI 0x1.62e400p-1f	/* 15 bits: times n is exact */
#define EXP_F32_LN2_LO 0x1.7f7d1cp-20f
#define EXP_F32_ROUND 0x1.8p23f

static inline float exp_f32_clamp(float x)
{
	uint32_t u;
	int32_t s;
	float y;

	memcpy(&u, &x, sizeof(u));
	s = (int32_t)MIN(u, EXP_F32_LOW);
	s = MIN(s, EXP_F32_HIGH);
	memcpy(&y, &s, sizeof(y));
	return x == x ? y : x;
}

/** exp_f32() - e^x; 0 below -86.98, infinity above 88.72 */
static inline float exp_f32(float x)
{
	float t, n, r, p, scale;
	uint32_t bits;

	x = exp_f32_clamp(x);
	t = x * 0x1.715476p0f + EXP_F32_ROUND;
	n = t - EXP_F32_ROUND;
	r = x - n * EXP_F32_LN2_HI;
	r = r - n * EXP_F32_LN2_LO;
	p = 2.0f / 5040;		/* the next term is 5e-9 of the sum */
	p = p * r + 2.0f / 720;
	p = p * r + 2.0f / 120;
	p = p * r + 2.0f / 24;
	p = p * r + 2.0f / 6;
	p = p * r + 1.0f;
	p = p * r + 2.0f;
	p = p * r + 2.0f;
	memcpy(&bits, &t, sizeof(bits));
	bits = (bits + 126) << 23;
	memcpy(&scale, &bits, sizeof(scale));
	return p * scale;
}

#define EXP_F64_LOW 0xc086233333333333u		/* -708.4 */
#define EXP_F64_HIGH 0x4086300000000000		/* 710 */
#define EXP_F64_LN2_HI 0x1.62e42fee00000p-1	/* 32 bits: times n is exact */
#define EXP_F64_LN2_LO 0x1.a39ef35793c76p-33
#define EXP_F64_ROUND 0x1.8p52

static inline double exp_f64_clamp(double x)
{
	uint64_t u;
	int64_t s;
	double y;

	memcpy(&u, &x, sizeof(u));
	s = (int64_t)MIN(u, EXP_F64_LOW);
	s = MIN(s, EXP_F64_HIGH);
	memcpy(&y, &s, sizeof(y));
	return x == x ? y : x;
}

/** exp_f64() - e^x; 0 below -708.05, infinity above 709.78 */
static inline double exp_f64(double x)
{
	double t, n, r, p, scale;
	uint64_t bits;

	x = exp_f64_clamp(x);
	t = x * 0x1.71547652b82fep0 + EXP_F64_ROUND;
	n = t - EXP_F64_ROUND;
	r = x - n * EXP_F64_LN2_HI;
	r = r - n * EXP_F64_LN2_LO;
	p = 2.0 / 6227020800;		/* the next term is 4e-18 of the sum */
	p = p * r + 2.0 / 479001600;
	p = p * r + 2.0 / 39916800;
	p = p * r + 2.0 / 3628800;
	p = p * r + 2.0 / 362880;
	p = p * r + 2.0 / 40320;
	p = p * r + 2.0 / 5040;
	p = p * r + 2.0 / 720;
	p = p * r + 2.0 / 120;
	p = p * r + 2.0 / 24;
	p = p * r + 2.0 / 6;
	p = p * r + 1.0;
	p = p * r + 2.0;
	p = p * r + 2.0;
	memcpy(&bits, &t, sizeof(bits));
	bits = (bits + 1022) << 52;
	memcpy(&scale, &bits, sizeof(scale));
	return p * scale;
}

/** r_exp() - e^x; exactly 0 for minus infinity */
static inline acc_t r_exp(acc_t x)
{
	return R_IS_DOUBLE ? (acc_t)exp_f64(x) : (acc_t)exp_f32(x);
}

/** r_sqrt() - correctly rounded */
static inline acc_t r_sqrt(acc_t x)
{
	return R_IS_DOUBLE ? (acc_t)sqrt(x) : (acc_t)sqrtf(x);
}

/** r_log() - libm, not vectorised: for one value per row */
static inline acc_t r_log(acc_t x)
{
	return R_IS_DOUBLE ? (acc_t)log(x) : (acc_t)logf(x);
}

/** r_sigmoid() - 1 / (1 + e^-x), relative accuracy in both tails */
static inline acc_t r_sigmoid(acc_t x)
{
	return 1 / (1 + r_exp(-x));
}

/*
 * log(1 + x), 0 <= x <= 1: 2 atanh(s) with s = x / (2 + x) <= 1/3, 2 s (1 + s^2/3 + s^4/5 ...).
 */
static inline float log1p_f32(float x)
{
	float s = x / (2 + x), ss = s * s, p;

	p = 1.0f / 15;		/* the next term is 2e-9 of the sum */
	p = p * ss + 1.0f / 13;
	p = p * ss + 1.0f / 11;
	p = p * ss + 1.0f / 9;
	p = p * ss + 1.0f / 7;
	p = p * ss + 1.0f / 5;
	p = p * ss + 1.0f / 3;
	p = p * ss + 1.0f;
	return 2 * s * p;
}

static inline double log1p_f64(double x)
{
	double s = x / (2 + x), ss = s * s, p;

	p = 1.0 / 31;		/* the next term is 2e-17 of the sum */
	p = p * ss + 1.0 / 29;
	p = p * ss + 1.0 / 27;
	p = p * ss + 1.0 / 25;
	p = p * ss + 1.0 / 23;
	p = p * ss + 1.0 / 21;
	p = p * ss + 1.0 / 19;
	p = p * ss + 1.0 / 17;
	p = p * ss + 1.0 / 15;
	p = p * ss + 1.0 / 13;
	p = p * ss + 1.0 / 11;
	p = p * ss + 1.0 / 9;
	p = p * ss + 1.0 / 7;
	p = p * ss + 1.0 / 5;
	p = p * ss + 1.0 / 3;
	p = p * ss + 1.0;
	return 2 * s * p;
}

/** r_softplus() - log(1 + e^x), relative accuracy in both tails */
static inline acc_t r_softplus(acc_t x)
{
	acc_t low = r_exp(x > 0 ? -x : x);

	low = R_IS_DOUBLE ? (acc_t)log1p_f64(low) : (acc_t)log1p_f32(low);
	return x > 0 ? x + low : low;
}

/** r_silu() - x sigmoid(x) */
static inline acc_t r_silu(acc_t x)
{
	return x * r_sigmoid(x);
}

/** r_silu_grad() - its derivative */
static inline acc_t r_silu_grad(acc_t x)
{
	acc_t s = r_sigmoid(x);

	return s + x * s * (1 - s);
}

/*
 * GELU in GPT-2's tanh form: 0.5 x (1 + tanh u) = x sigmoid(2u) with
 * u = sqrt(2/pi) (x + 0.044715 x^3). The sigmoid form does not cancel for
 * negative x.
 */
#define GELU_SCALE ((acc_t)1.5957691216057307117597842397375)	/* 2 sqrt(2/pi) */
#define GELU_CUBIC ((acc_t)0.044715)

/** r_gelu() */
static inline acc_t r_gelu(acc_t x)
{
	return x * r_sigmoid(GELU_SCALE * x * (1 + GELU_CUBIC * x * x));
}

/** r_gelu_grad() - derivative of r_gelu(): s + x s (1 - s) d(2u)/dx */
static inline acc_t r_gelu_grad(acc_t x)
{
	acc_t xx = x * x;
	acc_t s = r_sigmoid(GELU_SCALE * x * (1 + GELU_CUBIC * xx));

	return s + x * s * (1 - s) * GELU_SCALE * (1 + 3 * GELU_CUBIC * xx);
}

#endif
