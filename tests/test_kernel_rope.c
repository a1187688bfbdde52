// SPDX-License-Identifier: MIT
/*
 * Rotations, what heads share, SwiGLU and the maps of a splice, against plain loops in
 * double.
 */
#include "kernel.h"
#include "kernels_rope.h"
#include "kernels_splice.h"
#include "kernels_swiglu.h"

enum { GAP = 3 };	/* unused elements behind a head */

static struct {
	struct rope r;
	struct rope_heads x;
	act_t *dst, *src;
	int n, heads, width;
} s;

static void call_rope(void)
{
	k_rope(&s.r, &s.x, 1);
}

static bool rope_right(const act_t *before, const int32_t *pos)
{
	int half = s.r.width / 2;
	bool good = true;

	for (int i = 0; i < s.r.n; i++)
		for (int h = 0; h < s.x.heads; h++)
			for (int j = 0; j < half; j++) {
				long at = i * s.x.row + h * s.x.head + j;
				double a = (pos ? pos[i] : i % s.r.t) *
					   pow(s.r.theta, -2.0 * j / s.r.width);
				double x = real(before[at]), y = real(before[at + half]);
				double sn = s.r.back ? -sin(a) : sin(a);

				good &= near_act(s.x.x[at], x * cos(a) - y * sn, fabs(x) + fabs(y),
						 SUM_TOL(2));
				good &= near_act(s.x.x[at + half], y * cos(a) + x * sn,
						 fabs(x) + fabs(y), SUM_TOL(2));
			}
	return good;
}

static void test_rope(int b, int t, int heads, int width, bool back, const int32_t *pos)
{
	size_t n = (size_t)b * t * heads * (width + GAP);
	act_t *before = normals(n);
	struct out out = { guarded(n * sizeof(act_t)), n * sizeof(act_t), before };
	bool gaps = true;

	s.r = (struct rope){ .n = b * t, .t = t, .pos = pos, .width = width, .theta = 50,
			     .back = back };
	s.x = (struct rope_heads){ out.x, (long)heads * (width + GAP), width + GAP, heads };
	ok(threads_agree(call_rope, &out, 1) && rope_right(before, pos),
	   "rope_matches_loops %d x %d, %d heads of %d%s", b, t, heads, width, back ? ", back" : "");
	for (size_t i = 0; i < n; i++)
		if ((int)(i % (width + GAP)) >= width)
			gaps &= real(before[i]) == real(((act_t *)out.x)[i]);
	ok(gaps, "rope_leaves_the_rest");
	unguard(before), unguard(out.x);
}

static void call_spread(void)
{
	k_heads_spread(s.dst, (long)s.heads * s.width, s.width, s.src, s.width, s.n, s.heads,
		       s.width);
}

static void call_sum(void)
{
	k_heads_sum(s.dst, s.width, s.src, (long)s.heads * s.width, s.width, s.n, s.heads, s.width);
}

static void test_heads(int n, int heads, int width)
{
	size_t one = (size_t)n * width, all = one * heads;
	struct out spread = { guarded(all * ACT), all * ACT, NULL };
	struct out sum = { guarded(one * ACT), one * ACT, NULL };
	act_t *src = normals(one), *many = normals(all);
	bool good = true;

	s.n = n, s.heads = heads, s.width = width;
	s.dst = spread.x, s.src = src;
	ok(threads_agree(call_spread, &spread, 1), "heads_spread repeats");
	for (size_t i = 0; i < all; i++)
		good &= real(s.dst[i]) == real(src[i / width / heads * width + i % width]);
	s.dst = sum.x, s.src = many;
	good &= threads_agree(call_sum, &sum, 1);
	for (size_t i = 0; i < one; i++) {
		double want = 0, size = 0;

		for (int h = 0; h < heads; h++) {
			double x = real(many[(i / width * heads + h) * width + i % width]);

			want += x;
			size += fabs(x);
		}
		good &= near_act(s.dst[i], want, size, SUM_TOL(heads));
	}
	ok(good, "heads_spread_and_sum_match_loops %d x %d x %d", n, heads, width);
	unguard(spread.x), unguard(sum.x), unguard(src), unguard(many);
}

/* ---- SwiGLU --------------------------------------------------------------------- */

static struct {
	act_t *h, *gu, *dgu, *dh;
	int n, width;
} g;

static void call_swiglu(void)
{
	k_swiglu_fwd(g.h, g.gu, g.n, g.width);
	k_swiglu_bwd(g.dgu, g.gu, g.dh, g.n, g.width);
}

static void test_swiglu(int n, int width)
{
	size_t one = (size_t)n * width;
	struct out out[] = { { guarded(one * ACT), one * ACT, NULL },
			     { guarded(2 * one * ACT), 2 * one * ACT, NULL } };
	bool good;

	g.h = out[0].x, g.dgu = out[1].x, g.gu = normals(2 * one), g.dh = normals(one);
	g.n = n, g.width = width;
	good = threads_agree(call_swiglu, out, 2);
	for (size_t i = 0; i < one; i++) {
		size_t at = i / width * 2 * width + i % width;
		double x = real(g.gu[at]), u = real(g.gu[at + width]), d = real(g.dh[i]);
		double sg = 1 / (1 + exp(-x)), size = 1 + fabs(x);

		good &= near_act(g.h[i], x * sg * u, size * fabs(u), ELEMENT_TOL);
		good &= near_act(g.dgu[at], d * u * (sg + x * sg * (1 - sg)), size * fabs(d * u),
				 ELEMENT_TOL);
		good &= near_act(g.dgu[at + width], d * x * sg, size * fabs(d), ELEMENT_TOL);
	}
	ok(good, "swiglu_matches_loops %d x %d", n, width);
	unguard(g.h), unguard(g.dgu), unguard(g.gu), unguard(g.dh);
}

/* ---- splice --------------------------------------------------------------------- */

static struct {
	struct splice map;
	act_t *u, *out, *c, *du, *dchat;
	grad_t *dscale, *dshift;
	double *error;
} p;

static void call_splice(void)
{
	k_splice_in(p.u, p.c, &p.map);
	k_splice_out(p.out, p.c, &p.map);
	k_splice_grad(p.dscale, p.dshift, p.c, p.du, p.out, p.dchat, &p.map);
	k_splice_error(p.error, 0, p.c, p.dchat, 0.7, p.map.n, p.map.r);
}

static double softplus(double x)
{
	return log1p(exp(x));
}

static bool splice_rows_right(void)
{
	bool good = true;

	for (long i = 0; i < (long)p.map.n * p.map.r; i++) {
		double sigma = softplus(p.map.scale[i % p.map.r]), t = p.map.shift[i % p.map.r];
		double c = real(p.c[i]);

		good &= near_act(p.u[i], c * sigma + t, fabs(c * sigma) + fabs(t), ELEMENT_TOL);
		good &= near_act(p.out[i], (c - t) / sigma, (fabs(c) + fabs(t)) / sigma, ELEMENT_TOL);
	}
	return good;
}

static bool splice_sums_right(void)
{
	bool good = true;

	for (int j = 0; j < p.map.r; j++) {
		double x = p.map.scale[j], sigma = softplus(x), shift = 0, scale = 0, size = 0;

		for (int i = 0; i < p.map.n; i++) {
			long at = (long)i * p.map.r + j;
			double in = real(p.du[at]), out = real(p.dchat[at]) / sigma;

			shift += in - out;
			scale += in * real(p.c[at]) - out * real(p.out[at]);
			size += (fabs(in) + fabs(out)) *
				(1 + fabs(real(p.c[at])) + fabs(real(p.out[at])));
		}
		good &= near(p.dshift[j], shift, size, SUM_TOL(p.map.n));
		good &= near(p.dscale[j], scale / (1 + exp(-x)), size, SUM_TOL(p.map.n));
	}
	return good;
}

static bool splice_error_right(void)
{
	double sum = 0;

	for (int i = 0; i < p.map.n; i++) {
		double off = 0, size = 1e-12;

		for (int j = 0; j < p.map.r; j++) {
			double c = real(p.c[(long)i * p.map.r + j]);
			double d = c - real(p.dchat[(long)i * p.map.r + j]);

			off += d * d;
			size += c * c;
		}
		sum += off / size;
	}
	return near(*p.error, 0.7 * sum, 0.7 * sum, SUM_TOL(2 * p.map.r));
}

static void test_splice(int n, int r)
{
	size_t one = (size_t)n * r;
	struct out out[] = { { guarded(one * ACT), one * ACT, NULL },
			     { guarded(one * ACT), one * ACT, NULL },
			     { guarded(r * sizeof(grad_t)), r * sizeof(grad_t), NULL },
			     { guarded(r * sizeof(grad_t)), r * sizeof(grad_t), NULL },
			     { guarded(sizeof(double)), sizeof(double), NULL } };

	p.u = out[0].x, p.out = out[1].x, p.dscale = out[2].x, p.dshift = out[3].x;
	p.error = out[4].x, p.c = normals(one), p.du = normals(one), p.dchat = normals(one);
	p.map = (struct splice){ n, r, normals_acc(r), normals_acc(r) };
	ok(threads_agree(call_splice, out, 5) && splice_rows_right(), "splice_matches_loops %d x %d",
	   n, r);
	ok(splice_sums_right(), "splice_grad_matches_loops %d x %d", n, r);
	ok(splice_error_right(), "splice_error_matches_loops %d x %d", n, r);
	for (int i = 0; i < 5; i++)
		unguard(out[i].x);
	unguard(p.c), unguard(p.du), unguard(p.dchat);
}

int main(void)
{
	static int32_t pos[] = { 5, 0, 1000 };

	device_open(0);
	test_rope(1, 1, 1, 2, false, NULL);
	test_rope(2, 70, 3, 10, false, NULL);
	test_rope(2, 70, 3, 10, true, NULL);
	test_rope(3, 1, 4, 64, false, pos);
	test_heads(1, 1, 1);
	test_heads(90, 5, 48);
	test_swiglu(1, 1);
	test_swiglu(37, 530);
	test_splice(1, 1);
	test_splice(70, 3);
	test_splice(200, 130);
	return tap_done();
}
