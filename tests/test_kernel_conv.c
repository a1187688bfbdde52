// SPDX-License-Identifier: MIT
/* Short convolutions, and dropout, against plain loops in double. */
#include "kernel.h"
#include "kernels_conv.h"
#include "silu.h"

/* ---- short convolutions --------------------------------------------------------------- */

static struct {
	struct conv a;
	act_t *dx;
	const act_t *dy;
	grad_t *dw, *db;
} c;

static double conv_weight(int ch, int j)
{
	return real(c.a.w[(long)ch * c.a.taps + j]);
}

static double conv_input(int i, int t, int ch)
{
	return t < 0 ? 0 : real(c.a.x[((long)i * c.a.t + t) * c.a.x_row + ch]);
}

/* Before SiLU; @size: of its terms. */
static double conv_pre(int i, int t, int ch, double *size)
{
	double sum = c.a.bias ? real(c.a.bias[ch]) : 0;

	*size = fabs(sum);
	for (int j = 0; j < c.a.taps; j++) {
		double one = conv_weight(ch, j) * conv_input(i, t - c.a.taps + 1 + j, ch);

		sum += one;
		*size += fabs(one);
	}
	return sum;
}

/* Of its gradient; |silu''| is at most 1/2. */
static double conv_dpre(int i, int t, int ch, double *size)
{
	double dy = real(c.dy[((long)i * c.a.t + t) * c.a.y_row + ch]);
	double d = dy * silu_grad(conv_pre(i, t, ch, size));

	*size = fabs(d) + fabs(dy) * *size / 2;
	return d;
}

static void call_conv(void)
{
	k_conv_fwd(&c.a);
	k_conv_bwd(&c.a, c.dx, c.dw, c.db, c.dy);
}

static bool conv_rows_right(void)
{
	bool good = true;

	for (int i = 0; i < c.a.b; i++)
		for (int t = 0; t < c.a.t; t++)
			for (int ch = 0; ch < c.a.c; ch++) {
				long row = (long)i * c.a.t + t;
				double size, pre = conv_pre(i, t, ch, &size), dx = 0, dsize = 0;

				good &= near_act(c.a.y[row * c.a.y_row + ch], silu(pre), size,
						 SUM_TOL(c.a.taps));
				for (int j = 0; j < c.a.taps; j++) {
					int from = t + c.a.taps - 1 - j;
					double w = conv_weight(ch, j);

					if (from >= c.a.t)
						continue;
					dx += w * conv_dpre(i, from, ch, &size);
					dsize += fabs(w) * size;
				}
				good &= near_act(c.dx[row * c.a.x_row + ch], dx, dsize,
						 ELEMENT_TOL + SUM_TOL(2 * c.a.taps));
			}
	return good;
}

static bool conv_sums_right(void)
{
	bool good = true;

	for (int ch = 0; ch < c.a.c; ch++)
		for (int j = 0; j <= c.a.taps; j++) {
			double sum = 0, size = 0, tol = ELEMENT_TOL + SUM_TOL(64 + c.a.taps);

			for (int i = 0; i < c.a.b; i++)
				for (int t = 0; t < c.a.t; t++) {
					double part, d = conv_dpre(i, t, ch, &part);
					double x = j == c.a.taps ? 1 :
						   conv_input(i, t - c.a.taps + 1 + j, ch);

					sum += d * x;
					size += part * fabs(x);
				}
			if (j < c.a.taps)
				good &= near(c.dw[ch * c.a.taps + j], sum, size, tol);
			else if (c.db)
				good &= near(c.db[ch], sum, size, tol);
		}
	return good;
}

/* Position by position through the ring, the sequences at different ones. */
static bool conv_steps_right(const act_t *y)
{
	struct conv one = c.a;
	int slots = c.a.taps - 1;
	act_t *ring = guarded((size_t)c.a.b * slots * c.a.c * ACT);
	act_t *in = guarded((size_t)c.a.b * c.a.c * ACT), *out = guarded((size_t)c.a.b * c.a.c * ACT);
	struct cache_rows past = { ring, (long)slots * c.a.c, c.a.c, slots, c.a.c };
	bool same = true;

	one.t = 1;
	one.x = in, one.x_row = c.a.c;
	one.y = out, one.y_row = c.a.c;
	for (int t = 0; t < c.a.t + c.a.b - 1; t++) {
		int32_t pos[4];

		for (int i = 0; i < c.a.b; i++) {	/* sequence i begins i steps late */
			pos[i] = MIN(MAX(t - i, 0), c.a.t - 1);
			memcpy(in + i * c.a.c, c.a.x + ((long)i * c.a.t + pos[i]) * c.a.x_row,
			       c.a.c * ACT);
		}
		k_conv_step(&one, &past, pos);
		arch_sync();
		for (int i = 0; i < c.a.b; i++)
			if (t >= i && t - i < c.a.t)
				same &= !memcmp(out + i * c.a.c,
						y + ((long)i * c.a.t + pos[i]) * c.a.y_row,
						c.a.c * ACT);
	}
	unguard(ring), unguard(in), unguard(out);
	return same;
}

/* The gradient of x where that of y was. */
static bool conv_in_place_right(void)
{
	size_t n = (size_t)c.a.b * c.a.t * c.a.y_row * ACT;
	size_t weights = (size_t)c.a.c * c.a.taps * sizeof(grad_t), biases = c.a.c * sizeof(grad_t);
	act_t *both = memcpy(guarded(n), c.dy, n);
	grad_t *dw = guarded(weights), *db = c.db ? guarded(biases) : NULL;
	bool same;

	k_conv_bwd(&c.a, both, dw, db, both);
	arch_sync();
	same = !memcmp(dw, c.dw, weights) && (!db || !memcmp(db, c.db, biases));
	for (long i = 0; i < (long)c.a.b * c.a.t; i++)
		same &= !memcmp(both + i * c.a.x_row, c.dx + i * c.a.x_row, c.a.c * ACT);
	unguard(both), unguard(dw);
	if (db)
		unguard(db);
	return same;
}

static void test_conv(int b, int t, int channels, int taps, bool bias)
{
	size_t n = (size_t)b * t, row = channels + row_gap(channels);
	struct out out[] = { { guarded(n * row * ACT), n * row * ACT, NULL },
			     { guarded(n * row * ACT), n * row * ACT, NULL },
			     { guarded(channels * taps * sizeof(grad_t)),
			       channels * taps * sizeof(grad_t), NULL },
			     { guarded(channels * sizeof(grad_t)), channels * sizeof(grad_t), NULL } };

	c.a = (struct conv){ .b = b, .t = t, .c = channels, .taps = taps, .x = normals(n * row),
			     .x_row = row, .w = normals(channels * taps),
			     .bias = bias ? normals(channels) : NULL, .y = out[0].x, .y_row = row };
	c.dx = out[1].x, c.dw = out[2].x, c.db = bias ? out[3].x : NULL, c.dy = normals(n * row);
	ok(threads_agree(call_conv, out, 4), "conv %d x %d x %d, %d taps: repeats", b, t, channels,
	   taps);
	ok(conv_rows_right() && conv_sums_right(), "conv_matches_loops");
	ok(conv_in_place_right(), "conv_in_place_is_the_same");
	ok(conv_steps_right(c.a.y), "conv_steps_are_its_forward");
	for (int i = 0; i < 4; i++)
		unguard(out[i].x);
	unguard((void *)c.a.x), unguard((void *)c.a.w), unguard((void *)c.dy);
	if (bias)
		unguard((void *)c.a.bias);
}

/* ---- dropout --------------------------------------------------------------------------------- */

static struct {
	act_t *y;
	const act_t *x;
	size_t n, most;
	double p;
	struct draw draw;
} o;

static void call_dropout(void)
{
	k_dropout(o.y, o.x, o.n, o.most, o.p, 0x123456789abcdefull, &o.draw);
}

/* By the words of the counters, and by how many are left. */
static void test_dropout(size_t n, size_t most, double p, uint64_t micro)
{
	struct out out = { guarded(n * ACT), n * ACT, NULL };
	uint64_t first = micro * ((most + 3) / 4);
	size_t kept = 0;
	bool good;

	o.y = out.x, o.x = normals(n), o.n = n, o.most = most, o.p = p;
	o.draw = (struct draw){ 0x5eed00000007ull, micro };
	good = threads_agree(call_dropout, &out, 1);
	for (size_t i = 0; i < n; i++) {
		uint64_t index = first + i / 4;
		uint32_t words[4], key[2] = { 7, 0x5eed }, ctr[4] = { index, index >> 32, 0x89abcdef,
								       0x1234567 };
		bool keeps;

		philox(key, ctr, words);
		keeps = words[i % 4] >= floor(p * 4294967296.0);
		kept += keeps;
		good &= near_act(o.y[i], keeps ? real(o.x[i]) / (1 - p) : 0, fabs(real(o.x[i])),
				 ELEMENT_TOL / (1 - p));
	}
	good &= fabs(kept - n * (1 - p)) <= 5 * sqrt(n * p * (1 - p));
	ok(good, "dropout_keeps_what_its_words_say %zu of %zu, %g", n, most, p);
	unguard(out.x), unguard((void *)o.x);
}

int main(void)
{
	device_open(0);
	test_conv(1, 1, 1, 2, false);
	test_conv(2, 70, 19, 4, true);
	test_conv(3, 5, 300, 16, false);
	test_conv(3, 100, 264, 4, true);
	test_conv(1, 33, 8, 3, true);
	test_dropout(1, 1, 0, 0);
	test_dropout(5001, 6001, 0.1, 3);
	test_dropout(20000, 20000, 0.7, 1ull << 31);
	return tap_done();
}
