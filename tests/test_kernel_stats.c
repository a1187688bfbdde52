/* SPDX-License-Identifier: MIT */
/*
 * What the log is made of, against plain loops in double: the entropy of attention
 * rows, and the statistics of a tensor.
 */
#include "attn_ref.h"
#include "kernels_stats.h"

static double ref_entropy(const struct shape *s, const struct ref *r, int i, int h, int t)
{
	const double *p = ref_p(s, r, i, h, t);
	double sum = 0;

	for (int u = 0; u <= t; u++)
		sum -= p[u] > 0 ? p[u] * log(p[u]) : 0;
	return sum;
}

static void test_entropy(const struct shape *s)
{
	size_t n = (size_t)s->b * s->t * s->heads;
	struct work w = work_new(s);
	struct ref r = ref_new(s);
	struct buf got = buf_new_acc(n);
	double *want = dense(n), error;
	char name[128];

	work_fill(s, &w, &r);
	ref_forward(s, &r);
	k_attn_fwd(&w.a);
	k_attn_entropy(&w.a, got.p);
	arch_sync();
	for (int i = 0; i < s->b; i++)
		for (int h = 0; h < s->heads; h++)
			for (int t = 0; t < s->t; t++)
				want[((size_t)i * s->t + t) * s->heads + h] =
					ref_entropy(s, &r, i, h, t);
	error = distance(want, got, n, 1, 1, 0, 1);
	name_shape(name, sizeof(name), s);
	ok(error <= TOLERANCE && buf_guarded(got), "k_attn_entropy, %s: %.2g", name, error);
	free(want);
	free(got.all);
	work_free(&w);
	ref_free(&r);
}

static void test_stats(size_t n, bool acc)
{
	struct buf x = buf_of(n, acc ? ACC : ACT);
	double sum = 0, square = 0, size = 0, min = INFINITY, max = -INFINITY;
	/* sums in double of n terms (Higham 2002, section 3.1), their division and root */
	double tol = (n + 8) * 0x1p-53;
	struct stats s;

	for (size_t i = 0; i < n; i++) {
		double value;

		put(x.p, x.elem, i, uniform());
		value = get(x.p, x.elem, i);
		sum += value;
		size += fabs(value);
		square += value * value;
		min = fmin(min, value);
		max = fmax(max, value);
	}
	if (acc)
		k_stats_acc(&s, x.p, n);
	else
		k_stats(&s, x.p, n);
	arch_sync();
	ok(fabs(s.mean - sum / n) <= tol * size / n &&
	   fabs(s.rms - sqrt(square / n)) <= tol * sqrt(square / n) && s.min == min &&
	   s.max == max, "k_stats%s of %zu elements", acc ? "_acc" : "", n);
	free(x.all);
}

int main(void)
{
	static const struct shape shapes[] = {
		{ .b = 1, .t = 1, .heads = 1, .dk = 1, .dv = 1, .one_k = true },
		{ .b = 2, .t = 33, .heads = 3, .dk = 5, .dv = 7 },
		{ .b = 2, .t = 130, .heads = 2, .dk = 16, .dv = 16, .one_k = true, .one_v = true,
		  .gamma = true },
		{ .b = 1, .t = 130, .heads = 2, .dk = 8, .dv = 8, .one_k = true, .one_v = true,
		  .ra_scale = 0.4, .window = 70 },
		{ .b = 1, .t = 20, .heads = 2, .dk = 6, .dv = 4, .joint = true, .ra_scale = 0.3,
		  .window = 0 },
		{ .b = 2, .t = 70, .heads = 6, .group = 2, .dk = 5, .dv = 7, .ra_scale = 0.3,
		  .window = 9 },
	};

	device_open(0);
	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
		test_entropy(&shapes[i]);
	for (int acc = 0; acc < 2; acc++) {
		test_stats(1, acc);
		test_stats(1000, acc);
	}
	return tap_done();
}
