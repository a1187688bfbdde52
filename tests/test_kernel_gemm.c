/* SPDX-License-Identifier: MIT */
/*
 * k_gemm(), k_gemm_grad() and k_bias_grad() against plain loops in double.
 */
#include "kernel.h"

enum { GAP = 3 };	/* unused elements at the end of a row */

static struct gemm g;
static bool as_gradient;

static void call_gemm(void)
{
	if (as_gradient)
		k_gemm_grad(&g);
	else
		k_gemm(&g);
}

static double gelu(double x)
{
	return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static double gelu_grad(double x)
{
	double u = sqrt(2 / M_PI) * (x + 0.044715 * x * x * x), th = tanh(u);

	return 0.5 * (1 + th) +
	       0.5 * x * (1 - th * th) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

/* Element (i, j) of product p; @size gets the sum of magnitudes. */
static double reference(int p, int i, int j, double before, double *size)
{
	const act_t *a = (const act_t *)g.a + p * g.sa, *b = (const act_t *)g.b + p * g.sb;
	double sum = 0, magnitude = 0;

	for (int l = 0; l < g.k; l++) {
		double term = (double)(g.ta ? a[l * g.lda + i] : a[i * g.lda + l]) *
			      (g.tb ? b[j * g.ldb + l] : b[l * g.ldb + j]);

		sum += term;
		magnitude += fabs(term);
	}
	*size = fabs(g.alpha) * magnitude;
	if (g.beta) {
		*size += fabs(g.beta * before);
		return g.alpha * sum + g.beta * before;
	}
	return g.alpha * sum;
}

/* One result against its epilogue; @aux was the argument of DGELU. */
static bool element(int p, int i, int j, double before, const act_t *aux_in)
{
	long at = i * g.ldc + j;
	double got = ((act_t *)g.c)[p * g.sc + at], size, tol = SUM_TOL(g.k);
	double want = reference(p, i, j, before, &size);

	switch (g.ep) {
	case GEMM_PLAIN:
		return near(got, want, size, tol);
	case GEMM_BIAS:
		return near(got, want + g.bias[j], size + fabs(g.bias[j]), tol);
	case GEMM_BIAS_GELU:
		return near(g.aux[at], want + g.bias[j], size + fabs(g.bias[j]), tol) &&
		       near(got, gelu(g.aux[at]), 1 + fabs((double)g.aux[at]), ELEMENT_TOL);
	case GEMM_DGELU:	/* |gelu'| < 1.2 */
		return near(got, want * gelu_grad(aux_in[at]), 2 * size + fabs(want),
			    tol + ELEMENT_TOL);
	}
	return false;
}

/* Between rows and products nothing may be written. */
static bool gaps_whole(const void *x, const void *was, long rows)
{
	size_t row = g.ldc * sizeof(act_t), used = g.n * sizeof(act_t);

	for (long i = 0; i < rows; i++)
		if (memcmp((const char *)x + i * row + used, (const char *)was + i * row + used,
			   row - used))
			return false;
	return true;
}

static bool elements(const act_t *before, const act_t *aux_in, int batch)
{
	for (int p = 0; p < batch; p++)
		for (int i = 0; i < g.m; i++)
			for (int j = 0; j < g.n; j++)
				if (!element(p, i, j, before[p * g.sc + i * g.ldc + j], aux_in)) {
					diag("product %d element %d,%d", p, i, j);
					return false;
				}
	return true;
}

/* @beta 0: c holds NaN before the call. */
static void test_gemm(int m, int n, int k, int flags, double alpha, double beta, int batch,
		      enum gemm_epilogue ep)
{
	bool ta = flags & 1, tb = flags & 2, gelu_out = ep == GEMM_BIAS_GELU;
	long lda = (ta ? m : k) + GAP, ldb = (tb ? k : n) + GAP, ldc = n + GAP;
	long sa = lda * (ta ? k : m), sb = ldb * (tb ? n : k), sc = ldc * m;
	size_t bytes = sc * MAX(batch, 1) * sizeof(act_t);
	act_t *a = normals(sa * MAX(batch, 1)), *b = normals(sb * MAX(batch, 1));
	act_t *bias = normals(n), *before = normals(sc * MAX(batch, 1));
	act_t *aux_in = normals(sc), *aux = guarded(bytes), *nan = guarded(bytes);
	struct out out[2] = { { guarded(bytes), bytes, beta ? before : NULL },
			      { aux, bytes, gelu_out ? NULL : aux_in } };

	g = (struct gemm) { m, n, k, ta, tb, a, lda, b, ldb, out[0].x, ldc, alpha, beta, batch,
			    sa, sb, sc, ep, bias, ep == GEMM_PLAIN ? NULL : aux };
	ok(threads_agree(call_gemm, out, batch > 1 ? 1 : 2) &&
	   elements(before, aux_in, MAX(batch, 1)) &&
	   gaps_whole(g.c, beta ? before : nan, (long)m * MAX(batch, 1)) &&
	   (!gelu_out || gaps_whole(aux, nan, m)),
	   "gemm_matches_loops %d x %d x %d%s%s alpha %g beta %g batch %d epilogue %d", m, n, k,
	   ta ? " a^T" : "", tb ? " b^T" : "", alpha, beta, batch, ep);
	unguard(a), unguard(b), unguard(bias), unguard(before);
	unguard(aux_in), unguard(aux), unguard(nan), unguard(out[0].x);
}

static struct {
	act_t *db, *dy;
	int n, c;
} bias;

static void call_bias(void)
{
	k_bias_grad(bias.db, bias.dy, bias.n, bias.c);
}

static void test_bias(int n, int c)
{
	struct out out = { guarded(c * sizeof(act_t)), c * sizeof(act_t), NULL };
	bool good;

	bias.dy = normals((size_t)n * c);
	bias.db = out.x;
	bias.n = n;
	bias.c = c;
	good = threads_agree(call_bias, &out, 1);
	for (int j = 0; j < c; j++) {
		double sum = 0, size = 0;

		for (int i = 0; i < n; i++) {
			sum += bias.dy[(size_t)i * c + j];
			size += fabs(bias.dy[(size_t)i * c + j]);
		}
		good &= near(bias.db[j], sum, size, SUM_TOL(n));
	}
	ok(good, "bias_grad_matches_loops %d x %d", n, c);
	unguard(bias.dy), unguard(out.x);
}

int main(void)
{
	static const int shapes[][3] = {
		{ 1, 1, 1 }, { 1, 700, 37 }, { 8, 300, 64 }, { 9, 17, 5 }, { 37, 53, 29 },
		{ 130, 70, 300 }, { 1500, 33, 24 }, { 40, 1800, 20 }, { 250, 1100, 60 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
		const int *s = shapes[i];

		for (int flags = 0; flags < 4; flags++)
			test_gemm(s[0], s[1], s[2], flags, 1, 0, 0, GEMM_PLAIN);
		test_gemm(s[0], s[1], s[2], 2, -0.5, 1, 0, GEMM_PLAIN);
		test_gemm(s[0], s[1], s[2], 0, 2, 0.25, 1, GEMM_PLAIN);
		for (int ep = GEMM_BIAS; ep <= GEMM_DGELU; ep++)
			test_gemm(s[0], s[1], s[2], 2, 1, 0, 1, ep);
		test_gemm(s[0], s[1], s[2], 0, 1, 0, 1, GEMM_DGELU);
	}
	for (int flags = 0; flags < 4; flags++) {
		test_gemm(65, 48, 33, flags, 1, 0, 5, GEMM_PLAIN);
		test_gemm(140, 130, 64, flags, 0.5, 1, 12, GEMM_PLAIN);
	}
	as_gradient = true;
	test_gemm(300, 170, 90, 1, 1, 0, 0, GEMM_PLAIN);
	test_gemm(300, 170, 90, 1, 1, 1, 0, GEMM_PLAIN);
	test_bias(1, 1);
	test_bias(7, 130);
	test_bias(1000, 67);
	test_bias(200, 3072);
	return tap_done();
}
