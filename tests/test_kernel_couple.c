/* SPDX-License-Identifier: MIT */
/*
 * Matrices given by factors of heads, and transposed copies, against plain loops in
 * double.
 */
#include "kernel.h"
#include "kernels_couple.h"

enum { GAP = 3 };	/* unused elements at the end of a row */

static struct {
	struct couple c;
	param_t *w, *p;
	grad_t *dw, *dp;
} s;

static void call_fill(void)
{
	k_couple_fill(&s.c, s.w, s.p);
}

static void call_grad(void)
{
	k_couple_grad(&s.c, s.dp, s.dw);
}

static long place(int f, int j)
{
	return f * s.c.f_stride + j * s.c.l_stride;
}

static int head_of(int f)
{
	return (long)f * s.c.heads / s.c.fdim;
}

static bool fill_right(void)
{
	bool good = true;

	for (int f = 0; f < s.c.fdim; f++)
		for (int j = 0; j < s.c.l; j++) {
			double want = f % s.c.l == j ? s.c.factor * real(s.p[head_of(f)]) : 0;

			good &= near_act(s.w[place(f, j)], want, fabs(want), SUM_TOL(1));
		}
	return good;
}

/* Behind the rows nothing may be written: it is still NaN. */
static bool gaps_whole(const void *w, size_t elem, long rows, long cols)
{
	for (long i = 0; i < rows; i++)
		for (int e = 0; e < GAP; e++)
			if (!isnan(get(w, elem, i * (cols + GAP) + cols + e)))
				return false;
	return true;
}

static bool grad_right(void)
{
	bool good = true;

	for (int h = 0; h < s.c.heads; h++) {
		double sum = 0, size = 0;

		for (int f = 0; f < s.c.fdim; f++)
			if (head_of(f) == h) {
				double term = s.c.factor * s.dw[place(f, f % s.c.l)];

				sum += term;
				size += fabs(term);
			}
		good &= near(s.dp[h], sum, size, SUM_TOL(s.c.fdim));
	}
	return good;
}

/* @across: the matrix is stored with a row for each narrow element */
static void test_couple(int fdim, int l, int heads, bool across)
{
	long rows = across ? l : fdim, cols = across ? fdim : l;
	size_t wide = rows * (cols + GAP) * sizeof(param_t), narrow = heads * sizeof(grad_t);
	struct out fill = { guarded(wide), wide, NULL };
	struct out grad = { guarded(narrow), narrow, NULL };

	s.c = (struct couple) { fdim, l, heads, 0.7, across ? 1 : cols + GAP,
				across ? cols + GAP : 1 };
	s.w = fill.x, s.dp = grad.x, s.p = normals(heads);
	s.dw = normals_acc(rows * (cols + GAP));
	ok(threads_agree(call_fill, &fill, 1) && fill_right() && gaps_whole(s.w, ACT, rows, cols),
	   "couple_fill_matches_loops %d x %d, %d heads%s", fdim, l, heads,
	   across ? " across" : "");
	ok(threads_agree(call_grad, &grad, 1) && grad_right(),
	   "couple_grad_matches_loops %d x %d, %d heads%s", fdim, l, heads,
	   across ? " across" : "");
	unguard(fill.x), unguard(grad.x), unguard(s.p), unguard(s.dw);
}

static struct {
	void *dst, *src;
	int rows, cols;
	double beta;
} m;

static void call_transpose(void)
{
	k_transpose(m.dst, m.rows + GAP, m.src, m.cols + 1, m.rows, m.cols);
}

static void call_transpose_grad(void)
{
	k_transpose_grad(m.dst, m.rows + GAP, m.src, m.cols + 1, m.rows, m.cols, m.beta);
}

/* @elem: of the matrices; what is copied is not rounded */
static bool transpose_right(const grad_t *before, size_t elem)
{
	bool good = true;

	for (int i = 0; i < m.rows; i++)
		for (int j = 0; j < m.cols; j++) {
			long at = j * (m.rows + GAP) + i;
			double was = m.beta ? m.beta * before[at] : 0;
			double x = get(m.src, elem, i * (m.cols + 1) + j);

			good &= near(get(m.dst, elem, at), x + was, fabs(x) + fabs(was),
				     m.beta ? SUM_TOL(1) : 0);
		}
	return good;
}

static void test_transpose(int rows, int cols)
{
	size_t n = (size_t)cols * (rows + GAP), from = (size_t)rows * (cols + 1);
	grad_t *before = normals_acc(n);
	struct out narrow = { guarded(n * ACT), n * ACT, NULL };
	struct out wide = { guarded(n * ACC), n * ACC, NULL };

	m.rows = rows, m.cols = cols, m.dst = narrow.x, m.src = normals(from);
	m.beta = 0;
	ok(threads_agree(call_transpose, &narrow, 1) && transpose_right(before, ACT) &&
	   gaps_whole(m.dst, ACT, cols, rows), "transpose_matches_loops %d x %d", rows, cols);
	unguard(m.src);
	m.dst = wide.x, m.src = normals_acc(from);
	ok(threads_agree(call_transpose_grad, &wide, 1) && transpose_right(before, ACC) &&
	   gaps_whole(m.dst, ACC, cols, rows), "transpose_grad_matches_loops %d x %d, beta 0",
	   rows, cols);
	m.beta = -0.7;
	wide.before = before;
	ok(threads_agree(call_transpose_grad, &wide, 1) && transpose_right(before, ACC),
	   "transpose_grad_matches_loops %d x %d, beta %g", rows, cols, m.beta);
	unguard(before), unguard(narrow.x), unguard(wide.x), unguard(m.src);
}

int main(void)
{
	device_open(0);
	for (int across = 0; across < 2; across++) {
		test_couple(1, 1, 1, across);
		test_couple(48, 16, 3, across);
		test_couple(48, 24, 4, across);		/* heads of 12 inside a period of 24 */
		test_couple(20, 10, 3, across);		/* heads that do not divide the width */
		test_couple(512, 16, 4, across);
	}
	test_transpose(1, 1);
	test_transpose(37, 53);
	test_transpose(300, 170);
	return tap_done();
}
