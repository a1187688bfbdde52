// SPDX-License-Identifier: MIT
/*
 * Linear recurrences against the recurrence itself, position by position in double: outputs,
 * states and gradients; one step at a time; a sequence cut in two. Every decay, decays from
 * 0 to -20, all that heads may share, any number of positions.
 */
#include "kernel.h"
#include "linattn_ref.h"

static int gap;		/* unused elements behind a row; tensor cores want multiples of 8 */

/* Of the largest value; gradients of decays are differences of sums as large as these. */
#define TOL (sizeof(acc_t) == sizeof(double) ? 1e-12 : 1e-4)

/*
 * Where tensor cores multiply, what makes an output is rounded four times before: query and
 * key with their decays, scores or their gradients, and the state. A rounding errs by
 * ACT_ROUND at most, by SPREAD of it in the mean square: uniform within half a unit of a
 * number whose logarithm is, sqrt(1 / 3 (1 - 1/4) / (2 ln 2)). An output is a sum of such, as
 * large as the root of their squares, so that four err by 2 SPREAD of the outputs' mean, and at
 * 4.7 times that, as one of a million does, by ACT_ROUND of the largest, that is itself 4 times
 * the mean. Then the output is rounded.
 */
#define SPREAD 0.425
#define MMA_TOL (TOL + (mma ? ACT_ROUND : 0))

/* The mean square: four roundings before, and the output's. */
#define ACT_SPREAD (TOL + (mma ? 2.24 : 1) * SPREAD * ACT_ROUND)

/* Gradients of decays are float: no element is worse by more than two roundings of the largest. */
#define DECAY_TOL (TOL + (mma ? 2 * ACT_ROUND : 0))

static bool mma;	/* may tensor cores take the shape? */

static acc_t *state;
static size_t state_size;

/* Rows of @width elements with gaps behind them. */
static bool within(const void *x, const double *want_x, size_t elem, int rows, int width, int behind,
		   double tol, const char *what)
{
	double top = 0, off = 0;

	for (int r = 0; r < rows; r++)
		for (int c = 0; c < width; c++) {
			size_t i = (size_t)r * (width + behind) + c;
			double gone = fabs(get(x, elem, i) - want_x[i]);

			top = MAX(top, fabs(want_x[i]));
			if (!(gone <= off))
				off = gone;
		}
	if (off <= (tol + (elem == ACT ? ACT_ROUND : 0)) * MAX(top, 1e-3))
		return true;
	diag("%s: off by %.3g of %.3g", what, off, top);
	return false;
}

static bool same(const void *x, const double *want_x, size_t elem, int rows, int width, int behind,
		 const char *what)
{
	return within(x, want_x, elem, rows, width, behind, TOL, what);
}

/* The same in the mean square; @tol: that of one element and more for those that are few. */
static bool close_to(const void *x, const double *want_x, size_t elem, int rows, int width,
		     int behind, double tol, const char *what)
{
	double all = 0, off = 0;

	for (int r = 0; r < rows; r++)
		for (int c = 0; c < width; c++) {
			size_t i = (size_t)r * (width + behind) + c;
			double gone = get(x, elem, i) - want_x[i];

			all += want_x[i] * want_x[i];
			off += gone * gone;
		}
	tol *= 1 + 3 / sqrt((double)rows * width);
	if (sqrt(off) <= tol * sqrt(MAX(all, 1e-6 * rows * width)))
		return true;
	diag("%s: off by %.3g of its mean square", what, sqrt(off / all));
	return false;
}

/* What tensor cores may have made: outputs and their gradients. */
static bool outputs_right(const void *x, const double *want_x, int rows, int width, int behind,
			  const char *what)
{
	bool good = within(x, want_x, ACT, rows, width, behind, MMA_TOL, what);

	return close_to(x, want_x, ACT, rows, width, behind, ACT_SPREAD, what) && good;
}

/*
 * At most twice as far off, in the mean square, as sums of q dq - k dk would be of dq and dk
 * rounded once.
 */
static bool decays_right(const void *x, const double *want_x, int rows, int width, int behind,
			 const char *what)
{
	bool good = within(x, want_x, ACC, rows, width, behind, DECAY_TOL, what);

	double all = 0, plain;

	for (int r = 0; r < rows; r++)
		for (int c = 0; c < width; c++)
			all += pow(want_x[(size_t)r * (width + behind) + c], 2);
	plain = mma ? SPREAD * ACT_ROUND * sqrt(want.terms / all) : 0;
	return close_to(x, want_x, ACC, rows, width, behind, TOL + 2 * plain, what) && good;
}

static void call_forward(void)
{
	static int32_t len[8];

	for (int i = 0; i < a.b; i++)
		len[i] = a.t;
	k_linattn_fwd(&a);
	k_linattn_state(&a, state, state_size, len);
}

static void call_backward(void)
{
	k_linattn_bwd(&a, &d);
}

/* Position by position from state 0; s0 goes in as if position 0 had been. */
static bool steps_right(void)
{
	struct linattn one = a;
	act_t *o = guarded((size_t)a.b * a.heads * a.dv * ACT);
	acc_t *now = guarded(a.b * state_size * ACC);
	bool good = true;

	one.t = 1;
	one.o = o;
	if (a.s0)
		memcpy(now, a.s0, a.b * state_size * ACC);
	one.q_row = a.t * a.q_row, one.k_row = a.t * a.k_row;
	one.v_row = a.t * a.v_row, one.g_row = a.t * a.g_row;
	for (int t = 0; t < a.t && good; t++) {
		int32_t pos[8];

		for (int i = 0; i < a.b; i++)
			pos[i] = t + (a.s0 != NULL);
		one.q = a.q + t * a.q_row, one.k = a.k + t * a.k_row, one.v = a.v + t * a.v_row;
		one.g = a.g ? a.g + t * a.g_row : NULL;
		k_linattn_step(&one, now, state_size, pos);
		arch_sync();
		for (int i = 0; i < a.b; i++)
			good &= same(o + (long)i * a.heads * a.dv, want.o + at_o(i, t, 0), ACT, 1,
				     a.heads * a.dv, 0, "a step");
	}
	good &= same(now, want.last, ACC, a.b, state_size, 0, "the state of steps");
	unguard(o), unguard(now);
	return good;
}

static acc_t *decays(size_t n, double least)
{
	acc_t *g = normals_acc(n);

	for (size_t i = 0; i < n; i++)	/* some 0, some far below */
		g[i] = i % 7 == 3 ? 0 : (acc_t)(least * rng_uniform(5, 5, i));
	return g;
}

static double *zeros(size_t n)
{
	return xcalloc(n, sizeof(double));
}

/* Operands of a, sizes by rows of b * t. */
static void operands(double least, bool with_state)
{
	size_t n = (size_t)a.b * a.t, states;

	gap = row_gap(a.dk | a.dv);
	mma = sizeof(act_t) != sizeof(acc_t) && IS_ENABLED(CONFIG_ARCH_CUDA) && gap == 8;
	state_size = (size_t)a.heads * a.dk * a.dv;
	states = a.b * state_size;
	a.q_head = a.k_head = a.dk, a.v_head = a.dv, a.g_head = g_width();
	a.q_row = heads_of(LINATTN_Q) * a.dk + gap;
	a.k_row = heads_of(LINATTN_K) * a.dk + gap;
	a.v_row = heads_of(LINATTN_V) * a.dv + gap;
	a.g_row = heads_of(LINATTN_G) * g_width() + gap;
	a.q = normals(n * a.q_row), a.k = normals(n * a.k_row), a.v = normals(n * a.v_row);
	a.g = a.decay <= LINATTN_SCALAR ? decays(n * a.g_row, least) : NULL;
	a.o = guarded(n * a.heads * a.dv * ACT);
	a.s0 = with_state ? normals_acc(states) : NULL;
	d = (struct linattn_grad){ .d_o = normals(n * a.heads * a.dv),
		.ds1 = with_state ? normals_acc(states) : NULL };
	d.scratch = guarded(LINATTN_SCRATCH(a.b, a.t, a.heads, a.shared, a.dk, a.dv, a.chunk) * ACC);
	want.o = zeros(n * a.heads * a.dv), want.last = zeros(states), want.ds0 = zeros(states);
	want.dq = zeros(n * a.q_row), want.dk = zeros(n * a.k_row), want.dv = zeros(n * a.v_row);
	want.dg = zeros(n * a.g_row);
}

static void drop(void)
{
	unguard((void *)a.q), unguard((void *)a.k), unguard((void *)a.v), unguard(a.o);
	unguard((void *)d.d_o), unguard(d.scratch);
	if (a.g)
		unguard((void *)a.g);
	if (a.s0)
		unguard((void *)a.s0), unguard((void *)d.ds1);
	free(want.o), free(want.last), free(want.dq), free(want.dk), free(want.dv);
	free(want.dg), free(want.ds0);
}

/* The second part of one sequence begins with the state, and ends the gradient, of the first. */
static bool cut_right(int cut)
{
	struct linattn whole = a, parts[2] = { a, a };
	struct linattn_grad all = d;
	acc_t *middle = guarded(state_size * ACC), *dmiddle = guarded(state_size * ACC);
	bool good;

	parts[0].t = cut;
	parts[1].t = a.t - cut;
	parts[1].q += cut * a.q_row, parts[1].k += cut * a.k_row, parts[1].v += cut * a.v_row;
	parts[1].g = a.g ? a.g + cut * a.g_row : NULL;
	parts[1].o += (long)cut * a.heads * a.dv;
	parts[1].s0 = middle;
	memset(a.o, 0xFF, (size_t)a.t * a.heads * a.dv * ACT);
	k_linattn_state(&parts[0], middle, state_size, (int32_t[]){ cut });
	k_linattn_fwd(&parts[0]);
	k_linattn_fwd(&parts[1]);
	d.d_o += (long)cut * a.heads * a.dv;
	d.dq += cut * a.q_row, d.dk += cut * a.k_row, d.dv += cut * a.v_row;
	d.dg += cut * a.g_row;
	d.ds0 = dmiddle;
	k_linattn_bwd(&parts[1], &d);
	d = all;
	d.ds1 = dmiddle;
	k_linattn_bwd(&parts[0], &d);
	arch_sync();
	d = all;
	a = whole;
	good = outputs_right(a.o, want.o, a.t, a.heads * a.dv, 0, "o of two parts");
	good &= outputs_right(d.dq, want.dq, a.t, a.q_row - gap, gap, "dq of two parts");
	good &= outputs_right(d.dk, want.dk, a.t, a.k_row - gap, gap, "dk of two parts");
	if (a.g)
		good &= decays_right(d.dg, want.dg, a.t, a.g_row - gap, gap, "dg of two parts");
	unguard(middle), unguard(dmiddle);
	return good;
}

/* Operands of each head on the host, and outputs from there. */
static bool host_right(void)
{
	struct linattn_host x = { zeros(a.t * a.dk), zeros(a.t * a.dk), zeros(a.t * a.dv),
				  zeros(a.t * a.dk) };
	double *o = zeros((size_t)a.t * a.dv);
	bool good = true;

	memset(a.o, 0xFF, (size_t)a.b * a.t * a.heads * a.dv * ACT);
	for (int i = 0; i < a.b; i++)
		for (int h = 0; h < a.heads; h++) {
			k_linattn_get(&a, i, h, &x);
			for (int t = 0; t < a.t; t++) {
				for (int c = 0; c < a.dk; c++)
					good &= x.q[t * a.dk + c] == real(a.q[at_q(i, t, h) + c]) &&
						x.k[t * a.dk + c] == real(a.k[at_k(i, t, h) + c]) &&
						fabs(x.alpha[t * a.dk + c] - alpha(i, t, h, c)) <= UNIT;
				for (int e = 0; e < a.dv; e++) {
					good &= x.v[t * a.dv + e] == real(a.v[at_v(i, t, h) + e]);
					o[t * a.dv + e] = want.o[at_o(i, t, h) + e];
				}
			}
			k_linattn_put(&a, i, h, o);
		}
	arch_sync();
	good &= same(a.o, want.o, ACT, a.b * a.t, a.heads * a.dv, 0, "o from the host");
	free(x.q), free(x.k), free(x.v), free(x.alpha), free(o);
	return good;
}

static void gradients_right(const char *name)
{
	size_t n = (size_t)a.b * a.t;
	struct out out[] = { { guarded(n * a.q_row * ACT), n * a.q_row * ACT, NULL },
			     { guarded(n * a.k_row * ACT), n * a.k_row * ACT, NULL },
			     { guarded(n * a.v_row * ACT), n * a.v_row * ACT, NULL },
			     { guarded(n * a.g_row * ACC), n * a.g_row * ACC, NULL },
			     { guarded(a.b * state_size * ACC), a.b * state_size * ACC, NULL } };
	bool good;

	d.dq = out[0].x, d.dk = out[1].x, d.dv = out[2].x, d.dg = out[3].x, d.ds0 = out[4].x;
	ok(threads_agree(call_backward, out, 5), "%s: gradients repeat", name);
	good = outputs_right(d.dq, want.dq, n, a.q_row - gap, gap, "dq");
	good &= outputs_right(d.dk, want.dk, n, a.k_row - gap, gap, "dk");
	good &= outputs_right(d.dv, want.dv, n, a.v_row - gap, gap, "dv");
	if (a.g)
		good &= decays_right(d.dg, want.dg, n, a.g_row - gap, gap, "dg");
	good &= within(d.ds0, want.ds0, ACC, a.b, state_size, 0, MMA_TOL, "ds0");
	ok(good, "%s: gradients are those of the recurrence", name);
	for (int cut = 1; a.b == 1 && cut < a.t; cut += 1 + a.t / 3)
		ok(cut_right(cut), "%s: cut at %d", name, cut);
	for (size_t i = 0; i < ARRAY_SIZE(out); i++)
		unguard(out[i].x);
}

/* Of shape a; @least: the most negative g. */
static void test_linattn(struct linattn shape, double least, bool with_state)
{
	static const char *const decay[] = { "vector", "scalar", "fixed", "none" };
	char *name = xasprintf("%s to %g, %d x %d, %d heads of %d x %d by %d sharing %u, chunk %d%s",
			       decay[shape.decay], least, shape.b, shape.t, shape.heads, shape.dk,
			       shape.dv, shape.group, shape.shared, shape.chunk,
			       with_state ? ", a state" : "");
	struct out out[2];
	bool good;

	a = shape;
	operands(least, with_state);
	out[0] = (struct out){ a.o, (size_t)a.b * a.t * a.heads * a.dv * ACT, NULL };
	out[1] = (struct out){ guarded(a.b * state_size * ACC), a.b * state_size * ACC, NULL };
	state = out[1].x;
	reference();
	ok(threads_agree(call_forward, out, 2), "%s: repeats", name);
	good = outputs_right(a.o, want.o, a.b * a.t, a.heads * a.dv, 0, "o");
	ok(same(state, want.last, ACC, a.b, state_size, 0, "state") && good,
	   "%s: is the recurrence", name);
	ok(steps_right(), "%s: steps are", name);
	ok(host_right(), "%s: operands on the host", name);
	gradients_right(name);
	unguard(state);
	drop();
	free(name);
}

/* Widths of whole vectors, as tensor cores take them: of one segment or some, with ends inside. */
static void test_tiles(enum linattn_decay decay)
{
	struct linattn narrow = { .b = 2, .t = 77, .heads = 2, .group = 1, .dk = 32, .dv = 40,
				  .chunk = 16, .decay = decay, .scale = 0.3 };
	struct linattn all = { .b = 1, .t = 130, .heads = 3, .group = 3, .dk = 64, .dv = 64,
			       .shared = LINATTN_Q | LINATTN_K | LINATTN_V | LINATTN_G, .chunk = 64,
			       .decay = decay, .scale = 1 };
	struct linattn some = { .b = 2, .t = 600, .heads = 2, .group = 1, .dk = 72, .dv = 128,
				.chunk = 64, .decay = decay, .scale = 0.1 };
	struct linattn wide = { .b = 1, .t = 800, .heads = 1, .group = 1, .dk = 128, .dv = 264,
				.chunk = 64, .decay = decay, .scale = 0.1 };
	struct linattn full = { .b = 1, .t = 800, .heads = 1, .group = 1, .dk = 128, .dv = 256,
				.chunk = 64, .decay = decay, .scale = 0.1 };
	struct linattn thin = { .b = 1, .t = 520, .heads = 2, .group = 2, .dk = 48, .dv = 136,
				.shared = LINATTN_K, .chunk = 256, .decay = decay, .scale = 1 };
	struct linattn far = { .b = 1, .t = 2000, .heads = 2, .group = 1, .dk = 64, .dv = 64,
			       .chunk = 256, .decay = decay, .scale = 0.125 };

	test_linattn(narrow, -20, true);
	test_linattn(all, -3, true);
	test_linattn(some, -0.02, true);
	test_linattn(wide, -0.1, false);
	if (decay == LINATTN_VECTOR)
		test_linattn(full, -0.03, false);
	test_linattn(thin, -300, true);
	test_linattn(far, -0.4, true);
}

int main(void)
{
	device_open(0);
	for (int decay = LINATTN_VECTOR; decay <= LINATTN_NONE; decay++) {
		struct linattn one = { .b = 1, .t = 1, .heads = 1, .group = 1, .dk = 1, .dv = 1,
				       .chunk = 16, .decay = decay, .scale = 1 };
		struct linattn odd = { .b = 2, .t = 33, .heads = 3, .group = 1, .dk = 5, .dv = 7,
				       .chunk = 16, .decay = decay, .scale = 0.3 };
		struct linattn wide = { .b = 1, .t = 70, .heads = 2, .group = 1, .dk = 19, .dv = 33,
					.chunk = 32, .decay = decay, .scale = 0.5 };
		struct linattn pairs = { .b = 2, .t = 50, .heads = 4, .group = 2, .dk = 16, .dv = 9,
					 .shared = LINATTN_Q | LINATTN_K, .chunk = 48,
					 .decay = decay, .scale = 1 };
		struct linattn all = { .b = 1, .t = 130, .heads = 3, .group = 3, .dk = 8, .dv = 17,
				       .shared = LINATTN_K | LINATTN_V | LINATTN_G, .chunk = 64,
				       .decay = decay, .scale = 1 };

		test_linattn(one, -1, false);
		test_linattn(odd, -20, false);
		test_linattn(wide, -0.1, true);
		test_linattn(pairs, -3, true);
		test_linattn(all, -20, true);
		test_tiles(decay);
	}
	for (int width = 64; width <= 1024; width *= 2) {	/* beside one of no whole vectors */
		struct linattn keys = { .b = 1, .t = 37, .heads = 2, .group = 2, .dk = width - 3,
					.dv = 9, .shared = LINATTN_G, .chunk = 32,
					.decay = LINATTN_VECTOR, .scale = 1 };
		struct linattn values = { .b = 1, .t = 37, .heads = 2, .group = 1, .dk = 6,
					  .dv = width, .chunk = 16, .decay = LINATTN_SCALAR,
					  .scale = 1 };

		test_linattn(keys, -2, false);
		test_linattn(values, -2, true);
	}
	test_linattn((struct linattn){ .b = 1, .t = 300, .heads = 2, .group = 1, .dk = 32, .dv = 32,
				       .chunk = 256, .decay = LINATTN_VECTOR, .scale = 1 }, -0.01,
		     false);
	return tap_done();
}
