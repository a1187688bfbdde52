/* SPDX-License-Identifier: MIT */
/*
 * Pooling over positions and the per-head coupling, against plain loops in double.
 */
#include "kernel.h"

static struct {
	act_t *y, *x;
	int b, t, c;
	bool in_place;
	void (*kernel)(act_t *y, const act_t *x, int b, int t, int c);
} p;

static void call_pool(void)
{
	size_t bytes = (size_t)p.b * p.t * p.c * sizeof(act_t);

	if (p.in_place)
		memcpy(p.y, p.x, bytes);
	p.kernel(p.y, p.in_place ? p.y : p.x, p.b, p.t, p.c);
}

/* Weight of x_u in y_t. */
static double pool_weight(int t, int u)
{
	if (p.kernel == k_causal_mean_fwd)
		return u <= t ? 1.0 / (t + 1) : 0;
	if (p.kernel == k_causal_mean_bwd)
		return u >= t ? 1.0 / (u + 1) : 0;
	return 1.0 / p.t;
}

static bool pool_right(void)
{
	bool good = true;

	for (int i = 0; i < p.b; i++)
		for (int t = 0; t < p.t; t++)
			for (int j = 0; j < p.c; j++) {
				double sum = 0, size = 0;

				for (int u = 0; u < p.t; u++) {
					double term = pool_weight(t, u) *
						      p.x[((size_t)i * p.t + u) * p.c + j];

					sum += term;
					size += fabs(term);
				}
				good &= near(p.y[((size_t)i * p.t + t) * p.c + j], sum, size,
					     SUM_TOL(p.t));
				if (!good)
					return false;
			}
	return good;
}

static void test_pool(int b, int t, int c)
{
	static const struct {
		const char *name;
		void (*kernel)(act_t *y, const act_t *x, int b, int t, int c);
	} kernels[] = {
		{ "causal_mean_fwd", k_causal_mean_fwd }, { "causal_mean_bwd", k_causal_mean_bwd },
		{ "sequence_mean_fwd", k_sequence_mean_fwd },
		{ "sequence_mean_bwd", k_sequence_mean_bwd },
	};
	size_t n = (size_t)b * t * c;
	struct out out = { guarded(n * sizeof(act_t)), n * sizeof(act_t), NULL };

	p.b = b, p.t = t, p.c = c, p.x = normals(n), p.y = out.x;
	for (size_t i = 0; i < ARRAY_SIZE(kernels); i++) {
		p.kernel = kernels[i].kernel;
		for (p.in_place = false;; p.in_place = true) {
			ok(threads_agree(call_pool, &out, 1) && pool_right(),
			   "%s_matches_loops %d x %d x %d%s", kernels[i].name, b, t, c,
			   p.in_place ? " in place" : "");
			if (p.in_place || p.kernel == k_sequence_mean_fwd)
				break;
		}
	}
	unguard(p.x), unguard(out.x);
}

static struct {
	act_t *wide, *narrow, *wide_out, *narrow_out, *ds, *s;
	int n, fdim, l, heads;
} q;

static const double alpha = 0.7;

static void call_up(void)
{
	k_couple_up_fwd(q.wide_out, q.narrow, q.s, q.n, q.fdim, q.l, q.heads, alpha);
}

static void call_up_bwd(void)
{
	k_couple_up_bwd(q.ds, q.narrow_out, q.wide, q.narrow, q.s, q.n, q.fdim, q.l, q.heads,
			alpha);
}

static void call_up_bwd_detached(void)
{
	k_couple_up_bwd(q.ds, NULL, q.wide, q.narrow, q.s, q.n, q.fdim, q.l, q.heads, alpha);
}

static void call_down(void)
{
	k_couple_down_fwd(q.narrow_out, q.wide, q.s, q.n, q.fdim, q.l, q.heads);
}

static void call_down_bwd(void)
{
	k_couple_down_bwd(q.ds, q.wide_out, q.narrow, q.wide, q.s, q.n, q.fdim, q.l, q.heads);
}

/* wide_out = before + factor s narrow */
static bool spread_right(const act_t *before, double factor)
{
	bool good = true;

	for (int i = 0; i < q.n; i++)
		for (int f = 0; f < q.fdim; f++) {
			size_t at = (size_t)i * q.fdim + f;
			double term = factor * q.s[(long)f * q.heads / q.fdim] *
				      q.narrow[(size_t)i * q.l + f % q.l];

			good &= near(q.wide_out[at], before[at] + term,
				     fabs(term) + fabs((double)before[at]), SUM_TOL(1));
		}
	return good;
}

/* narrow_out[j] = factor sum of s wide */
static bool fold_right(double factor)
{
	bool good = true;

	for (int i = 0; i < q.n; i++)
		for (int j = 0; j < q.l; j++) {
			double sum = 0, size = 0;

			for (int f = j; f < q.fdim; f += q.l) {
				double term = factor * q.s[(long)f * q.heads / q.fdim] *
					      q.wide[(size_t)i * q.fdim + f];

				sum += term;
				size += fabs(term);
			}
			good &= near(q.narrow_out[(size_t)i * q.l + j], sum, size,
				     SUM_TOL(q.fdim / q.l));
		}
	return good;
}

static bool dots_right(double factor)
{
	bool good = true;

	for (int h = 0; h < q.heads; h++) {
		double sum = 0, size = 0;

		for (int i = 0; i < q.n; i++)
			for (int f = 0; f < q.fdim; f++)
				if ((long)f * q.heads / q.fdim == h) {
					double term = factor * q.wide[(size_t)i * q.fdim + f] *
						      q.narrow[(size_t)i * q.l + f % q.l];

					sum += term;
					size += fabs(term);
				}
		good &= near(q.ds[h], sum, size, SUM_TOL(q.n * q.fdim));
	}
	return good;
}

static void test_couple(int n, int fdim, int l, int heads)
{
	size_t wide = (size_t)n * fdim, narrow = (size_t)n * l;
	act_t *before = normals(wide);
	struct out outs[] = { { guarded(heads * sizeof(act_t)), heads * sizeof(act_t), NULL },
			      { guarded(narrow * sizeof(act_t)), narrow * sizeof(act_t), NULL },
			      { guarded(wide * sizeof(act_t)), wide * sizeof(act_t), before } };
	struct out down_bwd[] = { outs[0], outs[2] };
	double ratio = (double)l / fdim;

	q.n = n, q.fdim = fdim, q.l = l, q.heads = heads;
	q.wide = normals(wide), q.narrow = normals(narrow), q.s = normals(heads);
	q.ds = outs[0].x, q.narrow_out = outs[1].x, q.wide_out = outs[2].x;
	ok(threads_agree(call_up, &outs[2], 1) && spread_right(before, alpha),
	   "couple_up_fwd_matches_loops %d x %d, latent %d, heads %d", n, fdim, l, heads);
	ok(threads_agree(call_up_bwd, outs, 2) && dots_right(alpha) && fold_right(alpha),
	   "couple_up_bwd_matches_loops %d x %d, latent %d, heads %d", n, fdim, l, heads);
	ok(threads_agree(call_up_bwd_detached, outs, 1) && dots_right(alpha),
	   "couple_up_bwd_detached_matches_loops %d x %d, latent %d, heads %d", n, fdim, l, heads);
	ok(threads_agree(call_down, &outs[1], 1) && fold_right(ratio),
	   "couple_down_fwd_matches_loops %d x %d, latent %d, heads %d", n, fdim, l, heads);
	ok(threads_agree(call_down_bwd, down_bwd, 2) && dots_right(ratio) &&
	   spread_right(before, ratio),
	   "couple_down_bwd_matches_loops %d x %d, latent %d, heads %d", n, fdim, l, heads);
	for (size_t i = 0; i < ARRAY_SIZE(outs); i++)
		unguard(outs[i].x);
	unguard(before), unguard(q.wide), unguard(q.narrow), unguard(q.s);
}

int main(void)
{
	test_pool(1, 1, 1);
	test_pool(2, 37, 5);
	test_pool(3, 90, 70);
	test_couple(1, 1, 1, 1);
	test_couple(5, 48, 16, 3);
	test_couple(9, 48, 24, 4);	/* heads of 12 inside a period of 24 */
	test_couple(4, 20, 10, 3);	/* heads that do not divide the width */
	test_couple(70, 512, 16, 4);
	return tap_done();
}
