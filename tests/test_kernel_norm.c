/* SPDX-License-Identifier: MIT */
/*
 * Norm and element-wise kernels against plain loops in double.
 */
#include "kernel.h"

#define EPSILON 1e-3	/* other than the usual one: it must reach the kernel */

/* Where the residual gradient stands. */
enum residual { NONE, APART, IN_PLACE };

static struct {
	act_t *x, *y, *dxn, *dres;
	acc_t *w, *bias;
	act_t *xo, *xn, *dx;
	grad_t *dw, *db;
	acc_t *mean, *rstd;
	int n, c;
	bool rms, add, in_place;
	enum residual residual;
} s;

static struct norm norm_of(void)
{
	return (struct norm) {
		.n = s.n, .c = s.c, .rms = s.rms, .epsilon = EPSILON, .x = s.x, .xn = s.xn,
		.mean = s.rms ? NULL : s.mean, .rstd = s.rstd, .w = s.w,
		.bias = s.rms ? NULL : s.bias,
	};
}

static void call_fwd(void)
{
	struct norm a = norm_of();

	if (s.in_place) {
		memcpy(s.xo, s.x, (size_t)s.n * s.c * sizeof(*s.x));
		a.x = s.xo;
	}
	a.xo = s.add ? s.xo : NULL;
	a.y = s.add ? s.y : NULL;
	k_add_norm_fwd(&a);
}

static void call_bwd(void)
{
	const act_t *dres[] = { [NONE] = NULL, [APART] = s.dres, [IN_PLACE] = s.dx };
	struct norm a = norm_of();

	a.xn = NULL;
	k_norm_bwd(&a, s.dx, dres[s.residual], s.dxn, s.dw, s.rms ? NULL : s.db);
}

/* What is added and rounded is the norm's input. */
static double input(int i, int j)
{
	size_t at = (size_t)i * s.c + j;

	return s.add ? real(act((acc_t)real(s.x[at]) + (acc_t)real(s.y[at]))) : real(s.x[at]);
}

static void row_statistics(int i, double *mean, double *rstd)
{
	double sum = 0, sq = 0;

	for (int j = 0; j < s.c && !s.rms; j++)
		sum += input(i, j);
	*mean = sum / s.c;
	for (int j = 0; j < s.c; j++)
		sq += (input(i, j) - *mean) * (input(i, j) - *mean);
	*rstd = 1 / sqrt(sq / s.c + EPSILON);
}

static bool forward_right(void)
{
	bool good = true;

	for (int i = 0; i < s.n && good; i++) {
		double mean, rstd;

		row_statistics(i, &mean, &rstd);
		good &= s.rms || near(s.mean[i], mean, 3, SUM_TOL(s.c));
		good &= near(s.rstd[i], rstd, rstd, SUM_TOL(s.c));
		for (int j = 0; j < s.c && good; j++) {
			size_t at = (size_t)i * s.c + j;
			double xhat = (input(i, j) - mean) * rstd, bias = s.rms ? 0 : s.bias[j];

			good &= near_act(s.xn[at], xhat * s.w[j] + bias,
					 (fabs(xhat) + 3 * rstd) * fabs(s.w[j]) + fabs(bias),
					 SUM_TOL(s.c));
			if (s.add)
				good &= near(real(s.xo[at]), input(i, j), 1, 0);
		}
	}
	return good;
}

/* Against the definition, from the saved statistics. */
static bool backward_right(void)
{
	double *dw = xcalloc(s.c, sizeof(*dw)), *db = xcalloc(s.c, sizeof(*db));
	double *dw_size = xcalloc(s.c, sizeof(*dw)), *db_size = xcalloc(s.c, sizeof(*db));
	bool good = true;

	for (int i = 0; i < s.n; i++) {
		const act_t *x = s.x + (size_t)i * s.c, *dy = s.dxn + (size_t)i * s.c;
		double r = s.rstd[i], mu = s.rms ? 0 : s.mean[i], sum = 0, dot = 0, size = 0;

		for (int j = 0; j < s.c; j++) {
			double d = real(dy[j]), g = d * s.w[j], xhat = (real(x[j]) - mu) * r;

			sum += s.rms ? 0 : g / s.c;
			dot += g * xhat / s.c;
			size += fabs(g) * (1 + fabs(xhat)) / s.c;
			dw[j] += d * xhat;
			db[j] += d;
			dw_size[j] += fabs(d * xhat) + fabs(d * mu * r);
			db_size[j] += fabs(d);
		}
		for (int j = 0; j < s.c && good; j++) {
			double g = real(dy[j]) * s.w[j], xhat = (real(x[j]) - mu) * r;
			size_t at = (size_t)i * s.c + j;
			double was = s.residual == NONE ? 0 : real(s.dres[at]);

			good &= near_act(s.dx[at], was + r * (g - sum - xhat * dot),
					 fabs(was) + r * (fabs(g) + size * (1 + fabs(xhat))),
					 SUM_TOL(s.c));
		}
	}
	for (int j = 0; j < s.c && good; j++)
		good &= near(s.dw[j], dw[j], dw_size[j], SUM_TOL(s.n)) &&
			(s.rms || near(s.db[j], db[j], db_size[j], SUM_TOL(s.n)));
	free(dw), free(db), free(dw_size), free(db_size);
	return good;
}

/* Outputs that RMSNorm does not have stand last. */
static void test_norm(int n, int c, bool rms)
{
	static const char *const where[] = { "without", "apart from", "in place of" };
	size_t big = (size_t)n * c * sizeof(act_t), row = c * sizeof(grad_t);
	size_t col = n * sizeof(acc_t);
	struct out fwd[] = { { guarded(big), big, NULL }, { guarded(col), col, NULL },
			     { guarded(big), big, NULL }, { guarded(col), col, NULL } };
	struct out bwd[] = { { guarded(big), big, NULL }, { guarded(row), row, NULL },
			     { guarded(row), row, NULL } };
	struct out xo = fwd[2], mean = fwd[3];
	const char *name = rms ? "rms" : "layer";

	s.n = n, s.c = c, s.rms = rms;
	s.x = normals((size_t)n * c), s.y = normals((size_t)n * c);
	s.dxn = normals((size_t)n * c), s.w = normals_acc(c), s.bias = normals_acc(c);
	s.dres = normals((size_t)n * c);
	s.xn = fwd[0].x, s.rstd = fwd[1].x, s.xo = xo.x, s.mean = mean.x;
	s.dx = bwd[0].x, s.dw = bwd[1].x, s.db = bwd[2].x;
	for (int way = 0; way < 3; way++) {	/* x + y, x + y in place, x alone */
		s.add = way < 2;
		s.in_place = way == 1;
		fwd[2] = s.add ? xo : mean;
		fwd[3] = s.add ? mean : xo;
		ok(threads_agree(call_fwd, fwd, 2 + s.add + !rms) && forward_right(),
		   "add_norm_matches_loops %s %d x %d%s%s", name, n, c, s.add ? " with add" : "",
		   s.in_place ? " in place" : "");
	}
	for (s.residual = NONE; s.residual <= IN_PLACE; s.residual++) {
		bwd[0].before = s.residual == IN_PLACE ? s.dres : NULL;
		ok(threads_agree(call_bwd, bwd, rms ? 2 : 3) && backward_right(),
		   "norm_bwd_matches_loops %s %d x %d, %s a residual gradient", name, n, c,
		   where[s.residual]);
	}
	for (size_t i = 0; i < ARRAY_SIZE(fwd); i++)
		unguard(fwd[i].x);
	for (size_t i = 0; i < ARRAY_SIZE(bwd); i++)
		unguard(bwd[i].x);
	unguard(s.x), unguard(s.y), unguard(s.dxn), unguard(s.w), unguard(s.bias);
	unguard(s.dres);
}

/*
 * Rows far from zero: E[x^2] - E[x]^2 would lose all of the variance. The mean errs by
 * UNIT * OFFSET, its square adds to a variance of 1; the result itself errs by that.
 */
static void test_norm_offset(void)
{
	enum { OFFSET = 1000, N = 3, WIDTH = 100 };
	act_t *x = normals(N * WIDTH), *xn = guarded(N * WIDTH * sizeof(act_t));
	acc_t mean[N], rstd[N], w[WIDTH], b[WIDTH];
	bool good = true;

	for (int i = 0; i < N * WIDTH; i++)
		x[i] = act(real(x[i]) + OFFSET);
	for (int j = 0; j < WIDTH; j++)
		w[j] = 1, b[j] = 0;
	k_add_norm_fwd(&(struct norm) {
		.n = N, .c = WIDTH, .epsilon = EPSILON, .x = x, .xn = xn, .mean = mean,
		.rstd = rstd, .w = w, .bias = b,
	});
	arch_sync();
	s.x = x, s.add = s.rms = false, s.n = N, s.c = WIDTH;
	for (int i = 0; i < N; i++) {
		double mu, r;

		row_statistics(i, &mu, &r);
		for (int j = 0; j < WIDTH; j++)
			good &= near_act(xn[i * WIDTH + j], (input(i, j) - mu) * r, OFFSET,
					 SUM_TOL(WIDTH));
		good &= near(rstd[i], r, r, OFFSET * SUM_TOL(WIDTH));
	}
	ok(good, "norm_centres_before_squaring");
	unguard(x), unguard(xn);
}

static struct {
	void *out, *x;
	size_t n;
	int op;
} e;

enum { GELU, GELU_IN_PLACE, GELU_BWD, AXPBY, SCALE, SUM, NR_OPS };

static void call_element(void)
{
	switch (e.op) {
	case GELU:
		k_gelu_fwd(e.out, e.x, e.n);
		break;
	case GELU_IN_PLACE:
		k_gelu_fwd(e.out, e.out, e.n);
		break;
	case GELU_BWD:
		k_gelu_bwd(e.out, e.x, e.out, e.n);
		break;
	case AXPBY:
		k_axpby(e.out, e.n, e.x, e.n, 1, e.n, 0.3, -1.5);
		break;
	case SCALE:
		k_axpby(e.out, e.n, e.x, e.n, 1, e.n, 0.3, 0);
		break;
	case SUM:
		k_sum_grad(e.out, e.x, e.n);
		break;
	}
}

/* @was is what out held. */
static double element(double x, double was)
{
	double u = sqrt(2 / M_PI) * (x + 0.044715 * x * x * x), th = tanh(u);

	switch (e.op) {
	case GELU:
	case GELU_IN_PLACE:
		return 0.5 * x * (1 + th);
	case GELU_BWD:
		return was * (0.5 * (1 + th) + 0.5 * x * (1 - th * th) * sqrt(2 / M_PI) *
						       (1 + 3 * 0.044715 * x * x));
	case AXPBY:
		return 0.3 * x - 1.5 * was;
	case SCALE:
		return 0.3 * x;
	case SUM:
		return was + x;
	}
	return NAN;
}

static void test_elements(int op, size_t n)
{
	static const char *const name[] = { "gelu_fwd", "gelu_fwd in place", "gelu_bwd in place",
		"axpby", "axpby beta 0", "sum_grad" };
	bool fresh = op == GELU || op == SCALE, good;
	size_t elem = op == SUM ? ACC : ACT;
	void *before = op == SUM ? (void *)normals_acc(n) : normals(n);
	struct out out = { guarded(n * elem), n * elem, fresh ? NULL : before };

	e.op = op, e.n = n, e.out = out.x;
	e.x = op == SUM ? (void *)normals_acc(n) : normals(n);
	for (size_t i = 0; i < n; i++)		/* from one flat tail to the other */
		put(e.x, elem, i, 4 * get(e.x, elem, i));
	good = threads_agree(call_element, &out, 1);
	for (size_t i = 0; i < n && good; i++) {
		double was = get(before, elem, i), want;
		double x = op == GELU_IN_PLACE ? was : get(e.x, elem, i);
		double size = 1 + fabs(x) + 2 * fabs(was);

		want = element(x, was);
		good &= op == SUM ? near(((grad_t *)e.out)[i], want, size, ELEMENT_TOL) :
				    near_act(((act_t *)e.out)[i], want, size, ELEMENT_TOL);
	}
	ok(good, "%s_matches_loops %zu", name[op], n);
	unguard(before), unguard(e.out), unguard(e.x);
}

/* Far out there is nothing to compute, but nothing may break either. */
static void test_gelu_tails(void)
{
	static const double far[] = { -1e4, -200, -30, 0, 30, 200, 1e4, NAN };
	act_t x[ARRAY_SIZE(far)], h[ARRAY_SIZE(x)], d[ARRAY_SIZE(x)], one[ARRAY_SIZE(x)];
	bool good;

	for (size_t i = 0; i < ARRAY_SIZE(x); i++) {
		x[i] = act(far[i]);
		one[i] = act(1);
	}
	k_gelu_fwd(h, x, ARRAY_SIZE(x));
	k_gelu_bwd(d, x, one, ARRAY_SIZE(x));
	arch_sync();
	good = real(h[3]) == 0 && real(d[3]) == 0.5 && isnan(real(h[7])) && isnan(real(d[7]));
	for (int i = 0; i < 3; i++)
		good &= real(h[i]) == 0 && real(d[i]) == 0 && real(h[4 + i]) == real(x[4 + i]) &&
			real(d[4 + i]) == 1;
	ok(good, "gelu_tails_are_flat");
}

int main(void)
{
	device_open(0);
	for (int rms = 0; rms < 2; rms++) {
		test_norm(1, 1, rms);
		test_norm(1, 768, rms);
		test_norm(7, 33, rms);
		test_norm(150, 130, rms);
		test_norm(1100, 768, rms);	/* more rows than a GPU takes at a time */
		test_norm(1600, 64, rms);
		test_norm(9, 2048, rms);	/* the widest of one pass, and one wider */
		test_norm(9, 2056, rms);
	}
	test_norm_offset();
	for (int op = 0; op < NR_OPS; op++) {
		test_elements(op, 1);
		test_elements(op, 4097);
		test_elements(op, 50001);
	}
	test_gelu_tails();
	return tap_done();
}
