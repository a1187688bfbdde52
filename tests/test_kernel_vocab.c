/* SPDX-License-Identifier: MIT */
/*
 * Embedding and cross-entropy against plain loops in double.
 */
#include "kernel.h"

static struct {
	act_t *x, *dx;
	param_t *wte, *wpe;
	grad_t *dwte, *dwpe;
	int32_t *tok, *order, *pos;
	void *scratch;
	int b, t, t_max, c, vocab;
	bool with_wpe;
} s;

static void call_embed(void)
{
	k_embed_fwd(s.x, s.tok, s.pos, s.wte, s.with_wpe ? s.wpe : NULL, s.b, s.t, s.c);
}

static void call_embed_bwd(void)
{
	k_embed_bwd(s.dwte, s.with_wpe ? s.dwpe : NULL, s.dx, s.tok, s.order, s.b, s.t, s.t_max,
		    s.c, s.scratch);
}

static bool embed_right(void)
{
	for (int i = 0; i < s.b; i++)
		for (int j = 0; j < s.t; j++)
			for (int l = 0; l < s.c; l++) {
				size_t row = (size_t)i * s.t + j, at = s.pos ? s.pos[i] + j : j;
				acc_t want = real(s.wte[(size_t)s.tok[row] * s.c + l]);

				if (s.with_wpe)
					want += (acc_t)real(s.wpe[at * s.c + l]);
				if (real(s.x[row * s.c + l]) != real(act(want)))
					return false;
			}
	return true;
}

/* Rows stably sorted by their token. */
static void sort_rows(int32_t *order, const int32_t *tok, int n)
{
	int at;

	for (int i = 0; i < n; i++) {
		for (at = i; at && tok[order[at - 1]] > tok[i]; at--)
			order[at] = order[at - 1];
		order[at] = i;
	}
}

/* sum[row] of everything that goes there, on top of @before or of 0 */
static bool sums_right(const grad_t *sum, const grad_t *before, int rows, bool by_token)
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
				size_t row = by_token ? s.tok[i * s.t + j] : j;
				double dx = real(s.dx[((size_t)i * s.t + j) * s.c + l]);

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
	size_t wte_bytes = (size_t)vocab * c * sizeof(grad_t);
	size_t wpe_bytes = (size_t)(t + 3) * c * sizeof(grad_t), size = k_embed_scratch(b, t, c);
	grad_t *before = normals_acc((size_t)vocab * c);
	struct out fwd = { guarded(x_bytes), x_bytes, NULL };
	struct out bwd[] = { { guarded(wte_bytes), wte_bytes, before },
			     { guarded(wpe_bytes), wpe_bytes, NULL } };
	int32_t pos[] = { 2, 0, 3 };

	s.b = b, s.t = t, s.c = c, s.t_max = t + 3, s.scratch = guarded(size);
	s.wte = normals((size_t)vocab * c), s.wpe = normals((size_t)(t + 3) * c);
	s.dx = normals((size_t)b * t * c);
	s.x = fwd.x, s.dwte = bwd[0].x, s.dwpe = bwd[1].x;
	s.tok = xcalloc(b * t, sizeof(*s.tok)), s.order = xcalloc(b * t, sizeof(*s.order));
	for (int i = 0; i < b * t; i++) {
		uint64_t r = rng_u64(3, vocab, i);

		s.tok[i] = many || r % 7 == 0 ? r / 7 % vocab : r % 2 * (vocab - 1);
	}
	sort_rows(s.order, s.tok, b * t);
	for (int way = 0; way < 4; way++) {
		s.pos = way & 1 ? pos : NULL;
		s.with_wpe = way & 2;
		ok(threads_agree(call_embed, &fwd, 1) && embed_right(),
		   "embed_matches_loops %d x %d x %d, vocabulary %d%s%s", b, t, c, vocab,
		   s.pos ? ", positions" : "", s.with_wpe ? ", wpe" : "");
	}
	for (int wpe = 0; wpe < 2; wpe++) {
		s.with_wpe = wpe;
		ok(threads_agree(call_embed_bwd, bwd, 1 + wpe) &&
		   sums_right(s.dwte, before, vocab, true) &&
		   (!wpe || sums_right(s.dwpe, NULL, s.t_max, false)) &&
		   guard_whole(&(struct out) { s.scratch, size, NULL }),
		   "embed_bwd_matches_loops %d x %d x %d, vocabulary %d%s", b, t, c, vocab,
		   wpe ? ", wpe" : "");
	}
	unguard(s.wte), unguard(s.wpe), unguard(s.dx), unguard(before), unguard(s.scratch);
	unguard(fwd.x), unguard(bwd[0].x), unguard(bwd[1].x);
	free(s.tok), free(s.order);
}

/*
 * A token's rows are added in ascending position: exact in the order of plain loops. A GPU
 * adds up segments, whose sums are exact where the rows are bf16.
 */
static void test_embed_order(void)
{
	enum { N = 500, TOKENS = 5 };
	act_t *dx = normals(N);
	grad_t want[TOKENS] = { 0 }, got[TOKENS] = { 0 }, dwpe[N];
	void *mem = guarded(k_embed_scratch(1, N, 1));
	int32_t tok[N], order[N];
	bool good = true, segments = IS_ENABLED(CONFIG_ARCH_CUDA) && ACT == ACC;

	for (int i = 0; i < N; i++) {
		tok[i] = rng_u64(5, 0, i) % TOKENS;
		want[tok[i]] += (grad_t)real(dx[i]);
	}
	sort_rows(order, tok, N);
	k_embed_bwd(got, dwpe, dx, tok, order, 1, N, N, 1, mem);
	arch_sync();
	for (int i = 0; i < TOKENS; i++)
		good &= got[i] == want[i] || (segments && near(got[i], want[i], N, SUM_TOL(N)));
	ok(good, "embed_bwd_adds_in_ascending_position");
	unguard(dx), unguard(mem);
}

static struct {
	acc_t *loss;
	act_t *logits;
	int32_t *target, scored;
	int n, v, vocab;
	bool grad;
} q;

static void call_xent(void)
{
	k_xent(q.loss, q.logits, q.target, q.n, q.v, q.vocab, &q.scored, q.grad);
}

/* A row that is not scored: no loss, no gradient. */
static bool unscored_right(acc_t loss, const act_t *d)
{
	for (int j = 0; j < q.v && q.grad; j++)
		if (real(d[j]) != 0)
			return false;
	return loss == 0;
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
		double max = -INFINITY, sum = 0, factor = 1.0 / q.scored;
		int want = q.target[i];

		if (want < 0) {
			good &= unscored_right(q.loss[i], d);
			continue;
		}
		for (int j = 0; j < q.vocab; j++)
			max = fmax(max, real(x[j]));
		for (int j = 0; j < q.vocab; j++)
			sum += exp(real(x[j]) - max);
		good &= near(q.loss[i], log(sum) + max - real(x[want]),
			     1 + fabs(max) + fabs(real(x[want])), SUM_TOL(MIN(q.vocab, 2048)));
		for (int j = 0; j < q.v && good && q.grad; j++) {
			double p = j < q.vocab ? exp(real(x[j]) - max) / sum : 0;
			double size = j < q.vocab ? 1 + fabs(max) + fabs(real(x[j])) : 0;

			p = p < FLUSHED ? 0 : p;
			good &= near_act(d[j], factor * (p - (j == want)),
					 factor * (p * size + (j == want) + FLUSHED / UNIT),
					 SUM_TOL(MIN(q.vocab, 2048)));
			good &= j < q.vocab || real(d[j]) == 0;
		}
	}
	return good;
}

/* @skip: every skip-th row is not scored, 0: all are */
static void test_xent(int n, int skip, int v, int vocab, double spread)
{
	size_t bytes = (size_t)n * v * sizeof(act_t);
	act_t *before = normals((size_t)n * v);
	struct out out[] = { { guarded(n * sizeof(acc_t)), n * sizeof(acc_t), NULL },
			     { guarded(bytes), bytes, before } };

	q.n = n, q.v = v, q.vocab = vocab, q.scored = 2 * n + 1;	/* of a larger batch */
	q.loss = out[0].x, q.logits = out[1].x;
	q.target = xcalloc(n, sizeof(*q.target));
	for (int i = 0; i < n; i++)
		q.target[i] = skip && i % skip == 0 ? -1 : (int)(rng_u64(9, 1, i) % vocab);
	for (size_t i = 0; i < (size_t)n * v; i++)	/* rising: the maximum moves on */
		before[i] = act((size_t)i % v < (size_t)vocab
			? real(before[i]) * spread + spread * (i % v) / v : NAN);
	for (int way = 0; way < 2; way++) {
		q.grad = way;
		ok(threads_agree(call_xent, out, 2) && xent_right(before) &&
		   (way || !memcmp(q.logits, before, bytes)),
		   "xent_matches_loops %d rows, %d of %d, spread %g%s%s", n, vocab, v, spread,
		   skip ? ", some not scored" : "", way ? ", gradient" : "");
	}
	unguard(before), unguard(out[0].x), unguard(out[1].x);
	free(q.target);
}

static void test_xent_faults(void)
{
	enum { WIDE = 64 };
	static const double bad[] = { NAN, INFINITY, -INFINITY };
	int32_t target[] = { 3 }, scored = 1;
	acc_t loss;

	for (int way = 0; way < 6; way++) {
		act_t x[WIDE];

		for (int j = 0; j < WIDE; j++)
			x[j] = act(way >= 3 || j == 3 ? bad[way % 3] : 0);
		k_xent(&loss, x, target, 1, WIDE, WIDE, &scored, true);
		arch_sync();
		ok(!isfinite(loss), "xent_of_%g_%s_is_not_finite", bad[way % 3],
		   way < 3 ? "target" : "row");
	}
}

/* What nobody scores may hold anything. */
static void test_xent_unscored_nan(void)
{
	act_t x[64];
	int32_t target = -1, scored = 1;
	acc_t loss = NAN;
	bool good = true;

	memset(x, 0xFF, sizeof(x));
	k_xent(&loss, x, &target, 1, 64, 60, &scored, true);
	arch_sync();
	for (int j = 0; j < 64; j++)
		good &= real(x[j]) == 0;
	ok(good && loss == 0, "xent_of_nan_that_is_not_scored_is_0");
}

static void test_loss_mean(void)
{
	enum { N = 1001 };
	acc_t *x = normals_acc(N);
	double sum = 0, size = 0, mean = NAN;
	int32_t scored = 700;

	for (int i = 0; i < N; i++) {
		sum += x[i];
		size += fabs((double)x[i]);
	}
	k_loss_mean(&mean, x, N, &scored);
	arch_sync();
	ok(near(mean, sum / scored, size / scored, 2 * N * 0x1p-53), "loss_mean_matches_loops");
	scored = 1;
	k_loss_mean(&mean, x, 1, &scored);
	arch_sync();
	ok(mean == x[0], "loss_mean_of_one");
	unguard(x);
}

/* Steps of 1/2, so that there are equals; what is beyond the vocabulary is the largest. */
static void test_argmax(int n, int v, int vocab)
{
	acc_t *x = normals_acc((size_t)n * v);
	int32_t *got = guarded(n * sizeof(*got));
	bool good = true;
	int equals = 0;

	for (size_t i = 0; i < (size_t)n * v; i++)
		x[i] = i % v < (size_t)vocab ? rint(2 * x[i]) / 2 : 100;
	k_argmax(got, x, n, v, vocab);
	arch_sync();
	for (int i = 0; i < n; i++) {
		const acc_t *row = x + (size_t)i * v;
		int best = 0;

		for (int j = 1; j < vocab; j++) {
			best = row[j] > row[best] ? j : best;
			equals += row[j] == row[best] && j != best;
		}
		good &= got[i] == best;
	}
	ok(good && (vocab < 64 || equals), "argmax_is_the_first_of_the_largest %d rows, %d of %d", n,
	   vocab, v);
	unguard(x), unguard(got);
}

static void test_argmax_faults(void)
{
	enum { WIDE = 64 };
	int32_t best[3] = { -1, -1, -1 };
	acc_t x[3 * WIDE];

	for (int j = 0; j < WIDE; j++) {
		x[j] = -INFINITY;
		x[WIDE + j] = NAN;
		x[2 * WIDE + j] = j == 40 ? -3 : NAN;
	}
	k_argmax(best, x, 3, WIDE, WIDE);
	arch_sync();
	ok(best[0] == 0 && best[1] == 0 && best[2] == 40, "argmax_of_no_numbers_is_0: %d %d %d",
	   best[0], best[1], best[2]);
}

static void test_mask(void)
{
	enum { N = 3, WIDTH = 64, REAL = 61 };
	acc_t *x = normals_acc(N * WIDTH), was[N * WIDTH];
	bool good = true;

	memcpy(was, x, sizeof(was));
	k_mask_padding(x, N, WIDTH, REAL);
	arch_sync();
	for (int i = 0; i < N * WIDTH; i++)
		good &= x[i] == (i % WIDTH < REAL ? was[i] : -INFINITY);
	ok(good, "mask_padding_touches_padding_alone");
	unguard(x);
}

int main(void)
{
	device_open(0);
	test_embed(1, 1, 1, 1, true);
	test_embed(2, 33, 7, 64, true);
	test_embed(3, 200, 40, 5000, false);
	test_embed(2, 300, 32, 300, true);
	test_embed_order();
	test_xent(1, 0, 64, 1, 1);
	test_xent(7, 0, 128, 100, 3);
	test_xent(7, 3, 128, 100, 3);
	test_xent(9, 0, 5056, 5003, 30);
	test_xent(9, 1, 5056, 5003, 30);
	test_xent(3, 0, 4160, 4160, 0.1);
	test_xent_faults();
	test_xent_unscored_nan();
	test_loss_mean();
	test_mask();
	test_argmax(1, 64, 1);
	test_argmax(13, 128, 100);
	test_argmax(300, 192, 130);
	test_argmax_faults();
	return tap_done();
}
