/* SPDX-License-Identifier: MIT */
/*
 * k_attn_fwd() and k_attn_bwd() against dense loops in double.
 */
#include <omp.h>
#include <string.h>

#include "attn_ref.h"

/* Finite differences: see test_differences(). */
#define FD_STEP 1e-5
#define FD_TOLERANCE 1e-8

/* One row's share of the gradients; dp is [t] of scratch. */
static void ref_row_back(const struct shape *s, struct ref *r, int i, int h, int t, double *dp)
{
	long row = ((long)i * s->t + t) * s->heads + h, ku, kt, vu, qu;
	double *p = ref_p(s, r, i, h, t), mean = 0, ds;
	const double *d_o = r->d_o + row * s->dv;

	r->dgamma[row] = 0;
	for (int u = 0; u <= t; u++) {
		vu = (((long)i * s->t + u) * v_heads(s) + v_of(s, h)) * s->dv;
		dp[u] = 0;
		for (int e = 0; e < s->dv; e++) {
			dp[u] += d_o[e] * r->v[vu + e];
			r->dv[vu + e] += r->gamma[row] * p[u] * d_o[e];
		}
		mean += p[u] * dp[u];
	}
	if (r->gamma[row] != 0)
		r->dgamma[row] = mean;
	for (int u = 0; u <= t; u++) {
		ds = p[u] * r->gamma[row] * (dp[u] - mean);
		ku = (((long)i * s->t + u) * k_heads(s) + k_of(s, h)) * s->dk;
		kt = (((long)i * s->t + t) * k_heads(s) + k_of(s, h)) * s->dk;
		qu = (((long)i * s->t + u) * s->heads + h) * s->dk;
		for (int e = 0; e < s->dk; e++) {
			r->dq[row * s->dk + e] += ds / sqrt(s->dk) * r->k[ku + e];
			r->dk[ku + e] += ds / sqrt(s->dk) * r->q[row * s->dk + e];
			if (t - u > s->window)
				continue;
			r->dq[qu + e] += ds * s->ra_scale * r->k[kt + e];
			r->dk[kt + e] += ds * s->ra_scale * r->q[qu + e];
		}
	}
}

static void ref_backward(const struct shape *s, struct ref *r)
{
	double *dp = dense(s->t);

	for (int i = 0; i < s->b; i++)
		for (int h = 0; h < s->heads; h++)
			for (int t = 0; t < s->t; t++)
				ref_row_back(s, r, i, h, t, dp);
	free(dp);
}

static void run_all(struct work *w)
{
	k_attn_fwd(&w->a);
	k_attn_bwd(&w->a, w->dq.p, w->dk.p, w->dv.p, w->dgamma.p, w->d_o.p, w->delta.p);
	arch_sync();
}

static double worst_distance(const struct shape *s, const struct work *w, const struct ref *r)
{
	const struct attn *a = &w->a;
	long rows = (long)s->b * s->t;
	double worst = distance(r->lse, w->lse, rows, s->heads, s->heads, 1, 1);

	worst = fmax(worst, distance(r->o, w->o, rows, a->o_row, s->heads, s->dv, s->dv));
	worst = fmax(worst, distance(r->dq, w->dq, rows, a->q_row, s->heads, s->dk, s->dk));
	worst = fmax(worst, distance(r->dk, w->dk, rows, a->k_row, k_heads(s), s->dk, s->dk));
	worst = fmax(worst, distance(r->dv, w->dv, rows, a->v_row, v_heads(s), s->dv, s->dv));
	if (s->gamma)
		worst = fmax(worst, distance(r->dgamma, w->dgamma, rows, s->heads, s->heads,
					     1, 1));
	return worst;
}

static bool untouched(const struct shape *s, const struct work *w)
{
	struct buf all[] = { w->o, w->lse, w->dq, w->dk, w->dv, w->dgamma, w->delta };
	long rows = (long)s->b * s->t;
	bool good = true;

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		good = good && (!all[i].all || buf_guarded(all[i]));
	good = good && gaps_kept(w->o, rows, w->a.o_row, s->heads * s->dv);
	if (s->joint)
		return good;
	return good && gaps_kept(w->dq, rows, w->a.q_row, s->heads * s->dk) &&
		gaps_kept(w->dk, rows, w->a.k_row, k_heads(s) * s->dk) &&
		gaps_kept(w->dv, rows, w->a.v_row, v_heads(s) * s->dv);
}

/* Outputs again with other numbers of threads: the same bits. */
static bool threads_agree(struct work *w)
{
	struct buf *all[] = { &w->o, &w->lse, &w->dq, &w->dk, &w->dv };
	void *old[ARRAY_SIZE(all)];
	int most = omp_get_max_threads();
	bool same = true;

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		old[i] = xmalloc((all[i]->n + 1) * all[i]->elem);
		memcpy(old[i], all[i]->p, all[i]->n * all[i]->elem);
	}
	for (int n = 1; n <= 3; n++) {
		omp_set_num_threads(n);
		for (size_t i = 0; i < ARRAY_SIZE(all); i++)
			buf_clear(*all[i]);
		run_all(w);
		for (size_t i = 0; i < ARRAY_SIZE(all); i++)
			same = same && !memcmp(old[i], all[i]->p, all[i]->n * all[i]->elem);
	}
	omp_set_num_threads(most);
	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		free(old[i]);
	return same;
}

static void test_shape(const struct shape *s)
{
	struct work w = work_new(s);
	struct ref r = ref_new(s);
	double d;
	char name[160];
	bool clean, same;

	work_fill(s, &w, &r);
	ref_forward(s, &r);
	ref_backward(s, &r);
	run_all(&w);
	d = worst_distance(s, &w, &r);
	clean = untouched(s, &w);
	same = threads_agree(&w);
	name_shape(name, sizeof(name), s);
	if (!ok(d <= TOLERANCE && clean && same, "attn_matches_dense: %s", name))
		diag("distance %.2e, guards %s, threads %s", d, clean ? "kept" : "overwritten",
		     same ? "agree" : "differ");
	ref_free(&r);
	work_free(&w);
}

/*
 * The dense gradients above against central differences of the dense forward, of
 * <o, d_o>, one element of each tensor: the error is h^2 (1e-10) times a third
 * derivative of order 10, and round-off 1e-16 * 100 / h.
 */
static void test_differences(int heads, int group)
{
	struct shape s = { .b = 2, .t = 5, .heads = heads, .dk = 4, .dv = 3, .one_k = group == 1,
			   .gamma = true, .ra_scale = 0.7, .window = 2, .group = group };
	struct work w = work_new(&s);
	struct ref r = ref_new(&s);
	double *x[] = { r.q, r.k, r.v, r.gamma }, *dx[] = { r.dq, r.dk, r.dv, r.dgamma };
	int at[] = { 17, 9, 20, 7 };
	double worst = 0, side[2], keep;

	work_fill(&s, &w, &r);
	ref_forward(&s, &r);
	ref_backward(&s, &r);
	for (int n = 0; n < 4; n++) {
		keep = x[n][at[n]];
		for (int sign = 0; sign < 2; sign++) {
			x[n][at[n]] = keep + (sign ? FD_STEP : -FD_STEP);
			ref_forward(&s, &r);
			side[sign] = 0;
			for (int e = 0; e < s.b * s.t * s.heads * s.dv; e++)
				side[sign] += r.o[e] * r.d_o[e];
		}
		x[n][at[n]] = keep;
		worst = fmax(worst, fabs((side[1] - side[0]) / (2 * FD_STEP) - dx[n][at[n]]));
	}
	if (!ok(worst <= FD_TOLERANCE, "attn_dense_gradient_matches_differences %d / %d heads",
		heads, group))
		diag("worst %.2e", worst);
	ref_free(&r);
	work_free(&w);
}

/* A score of +-1e4 must neither overflow nor leave NaN. */
static void test_large(void)
{
	struct shape s = { .b = 1, .t = 130, .heads = 1, .dk = 8, .dv = 8 };
	struct work w = work_new(&s);
	struct ref r = ref_new(&s);
	double d;

	work_fill(&s, &w, &r);
	for (int e = 0; e < s.t * s.dk; e++) {
		r.q[e] *= 64;	/* exact */
		put(w.q.p, ACT, e / s.dk * w.a.q_row + e % s.dk, r.q[e]);
	}
	ref_forward(&s, &r);
	run_all(&w);
	/* scores of some 100 carry 100 times the absolute error */
	d = distance(r.o, w.o, s.t, w.a.o_row, 1, s.dv, s.dv);
	ok(d <= 100 * TOLERANCE && !isnan(get(w.dq.p, ACT, 0)) &&
	   !isnan(get(w.dk.p, ACT, (s.t - 1) * w.a.k_row)),
	   "attn_large_scores_stay_finite");
	ref_free(&r);
	work_free(&w);
}

int main(void)
{
	static const int length[] = { 1, 2, 63, 64, 65, 130, 200 };
	static const int width[][2] = { { 5, 7 }, { 16, 16 }, { 64, 33 }, { 8, 70 }, { 1, 1 } };
	static const int window[] = { -1, 0, 1, 7, 300, 70 };	/* -1: no reciprocal term */
	struct shape s;
	int n = 0;

	/* a loaded machine is slow with threads that wait: threads_agree() has some */
	device_open(1);
	test_differences(3, 1);
	test_differences(4, 2);
	for (size_t l = 0; l < ARRAY_SIZE(length); l++)
		for (size_t i = 0; i < ARRAY_SIZE(window); i++)
			for (int share = 0; share < 4; share++, n++) {
				s = (struct shape) {
					.b = 1 + n % 2, .t = length[l], .heads = n % 3 ? 3 : 1,
					.dk = width[n % 5][0], .dv = width[n % 5][1],
					.one_k = share & 1, .one_v = share & 2,
					.joint = n / 4 % 2, .gamma = n / 8 % 2 == 0,
					.ra_scale = window[i] < 0 ? 0 : 0.3,
					.window = MAX(window[i], 0),
				};
				test_shape(&s);
			}
	/* grouped heads, keys or values of which may be shared by all */
	for (size_t l = 0; l < ARRAY_SIZE(length); l++)
		for (int heads = 4; heads <= 6; heads += 2)
			for (int share = 0; share < 3; share++, n++) {
				s = (struct shape) {
					.b = 1 + n % 2, .t = length[l], .heads = heads, .group = 2,
					.dk = width[n % 5][0], .dv = width[n % 5][1],
					.one_k = share == 1, .one_v = share == 2,
					.joint = n / 2 % 2, .gamma = n / 3 % 2,
					.ra_scale = n % 3 ? 0.3 : 0, .window = n % 4 * 20,
				};
				test_shape(&s);
			}
	/* widths and strides of the units that multiply matrices */
	for (size_t l = 0; l < ARRAY_SIZE(length); l++)
		for (int width = 32; width <= 128; width *= 2)
			for (int share = 0; share < 3; share++, n++) {
				s = (struct shape) {
					.b = 1 + n % 2, .t = length[l], .heads = 2, .aligned = true,
					.dk = width, .dv = share == 2 ? width / 2 : width,
					.group = 1 + n % 2, .joint = share == 1, .gamma = n / 3 % 2,
				};
				test_shape(&s);
			}
	test_large();
	return tap_done();
}
