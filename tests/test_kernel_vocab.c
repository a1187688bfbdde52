/* SPDX-License-Identifier: MIT */
/*
 * Embedding and cross-entropy against plain loops in double.
 */
#include "kernel.h"

static struct {
	act_t *x, *wte, *wpe, *dwte, *dwpe, *dx;
	int32_t *tok, *order;
	int ld, b, t, pos, t_max, c, vocab;
} s;

static void call_embed(void)
{
	k_embed_fwd(s.x, s.tok, s.ld, s.wte, s.wpe, s.b, s.t, s.pos, s.c);
}

static void call_embed_bwd(void)
{
	k_embed_bwd(s.dwte, s.dwpe, s.dx, s.tok, s.ld, s.b, s.t, s.t_max, s.c, s.order);
}

static bool embed_right(void)
{
	for (int i = 0; i < s.b; i++)
		for (int j = 0; j < s.t; j++)
			for (int l = 0; l < s.c; l++)
				if (s.x[((size_t)i * s.t + j) * s.c + l] !=
				    s.wte[(size_t)s.tok[i * s.ld + j] * s.c + l] +
				    s.wpe[(size_t)(s.pos + j) * s.c + l])
					return false;
	return true;
}

/* sum[row] of everything that goes there, on top of @before or of 0 */
static bool sums_right(const act_t *sum, const act_t *before, int rows, bool by_token)
{
	size_t n = (size_t)rows * s.c;
	double *want = xcalloc(n, sizeof(*want)), *size = xcalloc(n, sizeof(*size));
	bool good = true;

	for (size_t i = 0; before && i < n; i++) {
		want[i] = before[i];
		size[i] = fabs((double)before[i]);
	}
	for (int i = 0; i < s.b; i++)
		for (int j = 0; j < s.t; j++)
			for (int l = 0; l < s.c; l++) {
				size_t row = by_token ? s.tok[i * s.ld + j] : j;
				double dx = s.dx[((size_t)i * s.t + j) * s.c + l];

				want[row * s.c + l] += dx;
				size[row * s.c + l] += fabs(dx);
			}
	for (size_t i = 0; i < n && good; i++)
		good = near(sum[i], want[i], size[i], SUM_TOL(s.b * s.t));
	free(want), free(size);
	return good;
}

/* @many: tokens all over the vocabulary, else two of them nearly always */
static void test_embed(int b, int t, int c, int vocab, bool many)
{
	size_t x_bytes = (size_t)b * t * c * sizeof(act_t);
	size_t wte_bytes = (size_t)vocab * c * sizeof(act_t);
	size_t wpe_bytes = (size_t)(t + 3) * c * sizeof(act_t);
	act_t *before = normals((size_t)vocab * c);
	struct out fwd = { guarded(x_bytes), x_bytes, NULL };
	struct out bwd[] = { { guarded(wte_bytes), wte_bytes, before },
			     { guarded(wpe_bytes), wpe_bytes, NULL } };

	s.b = b, s.t = t, s.c = c, s.ld = t + 1, s.pos = 2, s.t_max = t + 3;
	s.wte = normals((size_t)vocab * c), s.wpe = normals((size_t)(t + 3) * c);
	s.dx = normals((size_t)b * t * c);
	s.x = fwd.x, s.dwte = bwd[0].x, s.dwpe = bwd[1].x;
	s.tok = xcalloc(b * s.ld, sizeof(*s.tok)), s.order = guarded(2 * b * t * sizeof(*s.order));
	for (int i = 0; i < b * s.ld; i++) {
		uint64_t r = rng_u64(3, vocab, i);

		s.tok[i] = many || r % 7 == 0 ? r / 7 % vocab : r % 2 * (vocab - 1);
	}
	ok(threads_agree(call_embed, &fwd, 1) && embed_right(),
	   "embed_matches_loops %d x %d x %d, vocabulary %d", b, t, c, vocab);
	ok(threads_agree(call_embed_bwd, bwd, 2) && sums_right(s.dwte, before, vocab, true) &&
	   sums_right(s.dwpe, NULL, s.t_max, false) &&
	   guard_whole(&(struct out) { s.order, 2 * b * t * sizeof(*s.order), NULL }),
	   "embed_bwd_matches_loops %d x %d x %d, vocabulary %d", b, t, c, vocab);
	unguard(s.wte), unguard(s.wpe), unguard(s.dx), unguard(before), unguard(s.order);
	unguard(fwd.x), unguard(bwd[0].x), unguard(bwd[1].x);
	free(s.tok);
}

/* A token's rows are added in ascending position: exact in the order of plain loops. */
static void test_embed_order(void)
{
	enum { N = 500, TOKENS = 5 };
	act_t *dx = normals(N), want[TOKENS] = { 0 }, got[TOKENS] = { 0 }, dwpe[N];
	int32_t tok[N], order[2 * N];

	for (int i = 0; i < N; i++) {
		tok[i] = rng_u64(5, 0, i) % TOKENS;
		want[tok[i]] += dx[i];
	}
	k_embed_bwd(got, dwpe, dx, tok, N, 1, N, N, 1, order);
	ok(!memcmp(got, want, sizeof(got)), "embed_bwd_adds_in_ascending_position");
	unguard(dx);
}

static struct {
	acc_t *loss;
	act_t *logits;
	int32_t *target;
	int t, ld, row0, n, v, vocab;
	double dscale;
} q;

static void call_xent(void)
{
	k_xent(q.loss, q.logits, q.target, q.t, q.ld, q.row0, q.n, q.v, q.vocab, q.dscale);
}

/* r_exp() of a float is 0 below this. */
#define FLUSHED 2e-38

/*
 * x - max errs by UNIT |x - max|, its exponential by that share; a chunk of 2048 terms is
 * summed in act_t.
 */
static bool xent_right(const act_t *before)
{
	bool good = true;

	for (int i = 0; i < q.n && good; i++) {
		const act_t *x = before + (size_t)i * q.v, *d = q.logits + (size_t)i * q.v;
		int r = q.row0 + i, want = q.target[r / q.t * q.ld + r % q.t];
		double max = -INFINITY, sum = 0;

		for (int j = 0; j < q.vocab; j++)
			max = fmax(max, x[j]);
		for (int j = 0; j < q.vocab; j++)
			sum += exp(x[j] - max);
		good &= near(q.loss[i], log(sum) + max - x[want],
			     1 + fabs(max) + fabs((double)x[want]), SUM_TOL(MIN(q.vocab, 2048)));
		for (int j = 0; j < q.v && good && q.dscale; j++) {
			double p = j < q.vocab ? exp(x[j] - max) / sum : 0;
			double size = j < q.vocab ? 1 + fabs(max) + fabs((double)x[j]) : 0;

			p = p < FLUSHED ? 0 : p;
			good &= near(d[j], q.dscale * (p - (j == want)),
				     fabs(q.dscale) * (p * size + (j == want) + FLUSHED / UNIT),
				     SUM_TOL(MIN(q.vocab, 2048)));
			good &= j < q.vocab || d[j] == 0;
		}
	}
	return good;
}

static void test_xent(int n, int row0, int t, int v, int vocab, double spread)
{
	size_t bytes = (size_t)n * v * sizeof(act_t);
	act_t *before = normals((size_t)n * v);
	struct out out[] = { { guarded(n * sizeof(acc_t)), n * sizeof(acc_t), NULL },
			     { guarded(bytes), bytes, before } };

	q.n = n, q.row0 = row0, q.t = t, q.ld = t + 1, q.v = v, q.vocab = vocab;
	q.loss = out[0].x, q.logits = out[1].x;
	q.target = xcalloc((row0 + n) / t * q.ld + q.ld, sizeof(*q.target));
	for (int i = 0; i < (row0 + n) / t * q.ld + q.ld; i++)
		q.target[i] = rng_u64(9, 1, i) % vocab;
	for (size_t i = 0; i < (size_t)n * v; i++)	/* rising: the maximum moves on */
		before[i] = (size_t)i % v < (size_t)vocab
			? before[i] * spread + spread * (i % v) / v : NAN;
	for (int way = 0; way < 2; way++) {
		q.dscale = way ? -0.125 : 0;
		ok(threads_agree(call_xent, out, 2) && xent_right(before) &&
		   (way || !memcmp(q.logits, before, bytes)),
		   "xent_matches_loops %d rows from %d, %d of %d, spread %g, dscale %g", n, row0,
		   vocab, v, spread, q.dscale);
	}
	unguard(before), unguard(out[0].x), unguard(out[1].x);
	free(q.target);
}

static void test_xent_faults(void)
{
	enum { WIDE = 64 };
	static const double bad[] = { NAN, INFINITY, -INFINITY };
	int32_t target[] = { 3 };
	acc_t loss;

	for (int way = 0; way < 6; way++) {
		act_t x[WIDE] = { 0 };

		for (int j = 0; j < WIDE; j++)
			if (way < 3 ? j == 3 : true)
				x[j] = bad[way % 3];
		k_xent(&loss, x, target, 1, 1, 0, 1, WIDE, WIDE, 1);
		ok(!isfinite(loss), "xent_of_%g_%s_is_not_finite", bad[way % 3],
		   way < 3 ? "target" : "row");
	}
}

static void test_mean(void)
{
	enum { N = 1001 };
	act_t *x = normals(N);
	double sum = 0, size = 0, mean = NAN;

	for (int i = 0; i < N; i++) {
		sum += x[i];
		size += fabs((double)x[i]);
	}
	k_mean(&mean, x, N);
	ok(near(mean, sum / N, size / N, 2 * N * 0x1p-53), "mean_matches_loops");
	k_mean(&mean, x, 1);
	ok(mean == x[0], "mean_of_one");
	unguard(x);
}

int main(void)
{
	test_embed(1, 1, 1, 1, true);
	test_embed(2, 33, 7, 64, true);
	test_embed(3, 200, 40, 5000, false);
	test_embed(2, 300, 32, 300, true);
	test_embed_order();
	test_xent(1, 0, 1, 64, 1, 1);
	test_xent(7, 5, 4, 128, 100, 3);
	test_xent(9, 0, 16, 5056, 5003, 30);
	test_xent(3, 2, 2, 4160, 4160, 0.1);
	test_xent_faults();
	test_mean();
	return tap_done();
}
