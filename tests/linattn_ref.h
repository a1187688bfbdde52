/* SPDX-License-Identifier: MIT */
/*
 * A linear recurrence and its gradients, position by position in double, of the operands that a
 * test has put into @a and @d.
 */
#ifndef TENON_LINATTN_REF_H
#define TENON_LINATTN_REF_H

#include <math.h>
#include <string.h>

#include "kernels_linattn.h"
#include "real.h"
#include "util.h"

static struct linattn a;
static struct linattn_grad d;

/* What the recurrence gives, in double. */
static struct {
	double *o, *last, *dq, *dk, *dv, *dg, *ds0;
	double terms;	/* squares of all q dq and k dk that some dg is a sum of, over all dg */
} want;

static int heads_of(unsigned int operand)
{
	return a.shared & operand ? a.heads / a.group : a.heads;
}

static int head_of(unsigned int operand, int h)
{
	return a.shared & operand ? h / a.group : h;
}

static int g_width(void)
{
	return a.decay == LINATTN_VECTOR ? a.dk : 1;
}

static long at_q(int i, int t, int h)
{
	return ((long)i * a.t + t) * a.q_row + head_of(LINATTN_Q, h) * a.q_head;
}

static long at_k(int i, int t, int h)
{
	return ((long)i * a.t + t) * a.k_row + head_of(LINATTN_K, h) * a.k_head;
}

static long at_v(int i, int t, int h)
{
	return ((long)i * a.t + t) * a.v_row + head_of(LINATTN_V, h) * a.v_head;
}

static long at_g(int i, int t, int h)
{
	return ((long)i * a.t + t) * a.g_row + head_of(LINATTN_G, h) * a.g_head;
}

static long at_o(int i, int t, int h)
{
	return (((long)i * a.t + t) * a.heads + h) * a.dv;
}

static double alpha(int i, int t, int h, int c)
{
	if (a.decay == LINATTN_NONE)
		return 1;
	if (a.decay == LINATTN_FIXED)
		return 1 - pow(2, -5 - h);
	return exp(a.g[at_g(i, t, h) + (a.decay == LINATTN_VECTOR ? c : 0)]);
}

/* states [t + 1][dk][dv] of one head, and its outputs */
static void forward_head(double *s, int i, int h)
{
	long one = (long)a.dk * a.dv;

	for (long e = 0; e < one; e++)
		s[e] = a.s0 ? a.s0[((long)i * a.heads + h) * one + e] : 0;
	for (int t = 0; t < a.t; t++, s += one)
		for (int c = 0; c < a.dk; c++) {
			double left = alpha(i, t, h, c), k = real(a.k[at_k(i, t, h) + c]);
			double q = a.scale * real(a.q[at_q(i, t, h) + c]);
			double *was = s + (long)c * a.dv, *o = want.o + at_o(i, t, h);
			const act_t *v = a.v + at_v(i, t, h);

			for (int e = 0; e < a.dv; e++) {
				was[one + e] = left * was[e] + k * real(v[e]);
				o[e] += q * was[one + e];
			}
		}
	memcpy(want.last + ((long)i * a.heads + h) * one, s, one * sizeof(*s));
}

/* @later: squares of the terms from this position on */
static void backward_row(const double *s, double *ds, double *later, int i, int t, int h, int c)
{
	double k = real(a.k[at_k(i, t, h) + c]), q = real(a.q[at_q(i, t, h) + c]), decay = 0;
	double dq = 0, dk = 0, left = alpha(i, t, h, c), *dv = want.dv + at_v(i, t, h);
	const act_t *v = a.v + at_v(i, t, h), *d_o = d.d_o + at_o(i, t, h);

	s += (long)c * a.dv;
	ds += (long)c * a.dv;
	for (int e = 0; e < a.dv; e++) {
		double o = a.scale * real(d_o[e]);

		dq += s[(long)a.dk * a.dv + e] * o;
		ds[e] += q * o;
		dk += ds[e] * real(v[e]);
		dv[e] += ds[e] * k;
		decay += ds[e] * s[e] * left;
		ds[e] *= left;
	}
	want.dq[at_q(i, t, h) + c] += dq;
	want.dk[at_k(i, t, h) + c] += dk;
	want.terms += *later += q * dq * q * dq + k * dk * k * dk;
	if (a.decay <= LINATTN_SCALAR)
		want.dg[at_g(i, t, h) + (a.decay == LINATTN_VECTOR ? c : 0)] += decay;
}

static void reference(void)
{
	long one = (long)a.dk * a.dv;
	double *s = xmalloc((a.t + 1) * one * sizeof(*s)), *later = xmalloc(a.dk * sizeof(*later));

	want.terms = 0;
	for (int i = 0; i < a.b; i++)
		for (int h = 0; h < a.heads; h++) {
			double *ds = want.ds0 + ((long)i * a.heads + h) * one;

			memset(later, 0, a.dk * sizeof(*later));
			forward_head(s, i, h);
			for (long e = 0; e < one; e++)
				ds[e] = d.ds1 ? d.ds1[((long)i * a.heads + h) * one + e] : 0;
			for (int t = a.t - 1; t >= 0; t--)
				for (int c = 0; c < a.dk; c++)
					backward_row(s + t * one, ds, later + c, i, t, h, c);
		}
	free(s), free(later);
}

#endif
