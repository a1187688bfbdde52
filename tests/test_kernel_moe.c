// SPDX-License-Identifier: MIT
/*
 * Experts: routing, rows, products and balance against plain loops in double; also where
 * every token goes to one expert.
 */
#include "kernel.h"
#include "kernels_moe.h"

enum { MOST = 4096 };

static struct moe m;
static int32_t slot[MOST], place[MOST], pair[MOST], first[65];
static acc_t weight[MOST];

static void call_route(void)
{
	k_moe_route(&m);
}

/* Of two experts of a token, whether a goes before b. */
static bool before(const acc_t *key, int a, int b)
{
	return key[a] > key[b] || (key[a] == key[b] && a < b);
}

static bool slots_right(int i)
{
	acc_t key[64];
	double sum = 0;
	bool good = true;

	for (int e = 0; e < m.experts; e++)
		key[e] = m.logits[i * m.experts + e] + (m.bias ? m.bias[e] : 0);
	for (int j = 0; j < m.k; j++) {
		int rank = 0;

		for (int e = 0; e < m.experts; e++)
			rank += before(key, e, slot[i * m.k + j]);
		good &= rank == j;
		sum += exp(m.logits[i * m.experts + slot[i * m.k + j]]);
	}
	for (int j = 0; j < m.k; j++)
		good &= near(weight[i * m.k + j],
			     exp(m.logits[i * m.experts + slot[i * m.k + j]]) / sum, 1,
			     ELEMENT_TOL);
	return good;
}

/* Every pair has a row; rows of an expert stand together, by token. */
static bool rows_right(void)
{
	bool good = !first[0] && first[m.experts] == m.n * m.k;

	for (int i = 0; i < m.n * m.k; i++)
		good &= pair[place[i]] == i && place[i] >= first[slot[i]] &&
			place[i] < first[slot[i] + 1];
	for (int row = 1; row < m.n * m.k; row++)
		good &= slot[pair[row]] != slot[pair[row - 1]] || pair[row] > pair[row - 1];
	return good;
}

/* Widths: of rows, of an expert. */
static int C, X;

static struct {
	act_t *rows, *x, *y, *a, *c, *back;
	param_t *w;
	grad_t *dw, *excess;
	acc_t *dlogits, *dp;
	double *loss;
} s;

static void call_rows(void)
{
	k_moe_gather(s.rows, s.x, C, &m);
	k_moe_gemm(&(struct gemm){ .n = X, .k = C, .tb = true, .a = s.rows, .lda = C, .b = s.w,
				   .ldb = C, .sb = (long)X * C, .c = s.c, .ldc = X, .alpha = 1 }, &m);
	k_moe_gemm(&(struct gemm){ .n = C, .k = X, .a = s.a, .lda = X, .b = s.w, .ldb = C,
				   .sb = (long)X * C, .c = s.back, .ldc = C, .alpha = 1,
				   .beta = 1 }, &m);
	k_moe_gemm_grad(&(struct gemm){ .m = X, .n = C, .ta = true, .a = s.a, .lda = X,
					.b = s.rows, .ldb = C, .c = s.dw, .ldc = C, .sc = (long)X * C,
					.alpha = 1 }, &m);
	k_moe_combine(s.y, s.rows, C, true, 0, &m);
}

/* a w, added to what was there, of one row */
static bool back_right(const act_t *before, int row)
{
	bool good = true;

	for (int i = 0; i < C; i++) {
		double sum = real(before[row * C + i]), size = fabs(sum);

		for (int o = 0; o < X; o++) {
			double term = real(s.a[row * X + o]) *
				      real(s.w[(slot[pair[row]] * X + o) * C + i]);

			sum += term;
			size += fabs(term);
		}
		good &= near_act(s.back[row * C + i], sum, size, SUM_TOL(X));
	}
	return good;
}

static bool products_right(const act_t *before)
{
	bool good = true;

	for (int e = 0; e < m.experts; e++)
		for (int o = 0; o < X; o++)
			for (int i = 0; i < C; i++) {
				double sum = 0, size = 0;

				for (int row = first[e]; row < first[e + 1]; row++) {
					double term = real(s.a[row * X + o]) *
						      real(s.x[pair[row] / m.k * C + i]);

					sum += term;
					size += fabs(term);
				}
				good &= near(s.dw[(e * X + o) * C + i], sum, size, SUM_TOL(m.n));
			}
	for (int row = 0; row < m.n * m.k; row++)
		for (int o = 0; o < X; o++) {
			double sum = 0, size = 0;

			for (int i = 0; i < C; i++) {
				double term = real(s.x[pair[row] / m.k * C + i]) *
					      real(s.w[(slot[pair[row]] * X + o) * C + i]);

				sum += term;
				size += fabs(term);
			}
			good &= near_act(s.c[row * X + o], sum, size, SUM_TOL(C));
		}
	for (int row = 0; row < m.n * m.k; row++)
		good &= back_right(before, row);
	/* the slots' weights add up to 1 */
	for (int i = 0; i < m.n * C; i++)
		good &= near_act(s.y[i], real(s.x[i]), fabs(real(s.x[i])), SUM_TOL(m.k));
	return good;
}

static void call_balance(void)
{
	*s.loss = 1;
	k_moe_balance(s.loss, 0.3, &m);
	k_moe_route_bwd(s.dlogits, s.dp, &m);
	k_moe_balance_bwd(s.dlogits, 0.3, &m);
	k_moe_excess(s.excess, &m);
}

static double softmax_of(int i, int e)
{
	double sum = 0;

	for (int j = 0; j < m.experts; j++)
		sum += exp(m.logits[i * m.experts + j]);
	return exp(m.logits[i * m.experts + e]) / sum;
}

static double share(int e)
{
	return (first[e + 1] - first[e]) / ((double)m.n * m.k);
}

/* What one token adds to dlogits of expert e. */
static double dlogit(int i, int e)
{
	double mean = 0, choice = 0, dot = 0;

	for (int j = 0; j < m.experts; j++)
		mean += share(j) * softmax_of(i, j);
	for (int j = 0; j < m.k; j++)
		dot += weight[i * m.k + j] * s.dp[place[i * m.k + j]];
	for (int j = 0; j < m.k; j++)
		if (slot[i * m.k + j] == e)
			choice = weight[i * m.k + j] * (s.dp[place[i * m.k + j]] - dot);
	return choice + 0.3 * m.experts / m.n * softmax_of(i, e) * (share(e) - mean);
}

static bool balance_right(void)
{
	double sum = 0;
	bool good = true;

	for (int i = 0; i < m.n; i++)
		for (int e = 0; e < m.experts; e++) {
			sum += share(e) * softmax_of(i, e);
			good &= near(s.dlogits[i * m.experts + e], dlogit(i, e), 4, ELEMENT_TOL);
		}
	good &= near(*s.loss, 1 + 0.3 * m.experts * sum / m.n, 2, ELEMENT_TOL);
	for (int e = 0; e < m.experts; e++)
		good &= s.excess[e] == (double)m.experts * (first[e + 1] - first[e]) - m.n * m.k;
	return good;
}

static void test_moe(int n, int experts, int k, bool biased, bool one, int c, int width)
{
	size_t pairs = (size_t)n * k;
	act_t *before = (C = c, X = width, normals(pairs * C));
	struct out rows[] = { { guarded(pairs * C * ACT), pairs * C * ACT, NULL },
			      { guarded(pairs * X * ACT), pairs * X * ACT, NULL },
			      { guarded((size_t)experts * X * C * ACC), (size_t)experts * X * C * ACC, NULL },
			      { guarded((size_t)n * C * ACT), (size_t)n * C * ACT, NULL },
			      { guarded(pairs * C * ACT), pairs * C * ACT, before } };
	struct out loss[] = { { guarded(sizeof(double)), sizeof(double), NULL },
			      { guarded((size_t)n * experts * ACC), (size_t)n * experts * ACC, NULL },
			      { guarded(experts * ACC), experts * ACC, NULL } };
	acc_t *logits = normals_acc((size_t)n * experts), *bias = normals_acc(experts);
	bool good = true;

	for (int i = 0; one && i < n; i++)
		logits[i * experts + experts - 1] = 30;
	m = (struct moe){ n, experts, k, logits, biased ? bias : NULL, slot, weight, place, pair,
			  first };
	s.rows = rows[0].x, s.c = rows[1].x, s.dw = rows[2].x, s.y = rows[3].x;
	s.back = rows[4].x;
	s.loss = loss[0].x, s.dlogits = loss[1].x, s.excess = loss[2].x;
	s.x = normals((size_t)n * C), s.a = normals(pairs * X), s.w = normals((size_t)experts * X * C);
	s.dp = normals_acc(pairs);
	call_route();
	arch_sync();
	for (int i = 0; i < n; i++)
		good &= slots_right(i);
	ok(good && rows_right(), "moe_routes %d tokens to %d of %d%s%s", n, k, experts,
	   biased ? ", biased" : "", one ? ", all to one" : "");
	ok(threads_agree(call_rows, rows, 5) && products_right(before), "moe_rows_match_loops %d x %d",
	   C, X);
	ok(threads_agree(call_balance, loss, 3) && balance_right(), "moe_balance_matches_loops");
	for (int i = 0; i < 5; i++)
		unguard(rows[i].x);
	for (int i = 0; i < 3; i++)
		unguard(loss[i].x);
	unguard(s.x), unguard(s.a), unguard(s.w), unguard(s.dp), unguard(logits), unguard(bias);
	unguard(before);
}

int main(void)
{
	device_open(0);
	test_moe(1, 2, 1, false, false, 5, 6);
	test_moe(70, 5, 2, false, false, 5, 6);
	test_moe(300, 8, 3, true, false, 33, 70);
	test_moe(90, 4, 1, false, true, 5, 6);
	test_moe(33, 3, 3, false, false, 64, 40);
	test_moe(40, 40, 2, false, false, 16, 8);
	test_moe(400, 4, 2, false, false, 136, 144);
	test_moe(300, 3, 1, false, true, 72, 200);
	return tap_done();
}
