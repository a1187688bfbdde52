// SPDX-License-Identifier: MIT
/*
 * Every registered mixer, alone: its table covers its struct, its gradients of x, of
 * every parameter and of every tap agree with finite differences, it writes inside its
 * buffers, it overwrites what it must, it looks at no later position, and steps, or a
 * fill and further steps, give the rows of its forward.
 */
#include "mixer_bench.h"

static void mixer_table_covers_struct(const struct mixer *x)
{
	size_t end = 0;
	bool fits = true, tail = false;

	for (int i = 0; i < x->nr_params; i++) {
		const struct param *p = &x->params[i];

		fits &= p->offset >= end && p->offset - end < TENSOR_ALIGN &&
			p->offset % TENSOR_ALIGN == 0;
		fits &= !tail || p->need;
		tail |= p->need != 0;
		end = p->offset + param_numel(p) * PARAM_ELEM(p->flags);
	}
	ok(fits && ROUND_UP(end, TENSOR_ALIGN) == x->param_size,
	   "%s: table covers struct, tensors that may not exist last", x->name);
}

/* Of the operations of a call those that are no matrix product. */
static double beyond_products(const struct work *w)
{
	double left = w->flops;

	for (int i = 0; i < w->nr; i++) {
		const struct product *p = &w->products[i];

		left -= 2.0 * p->m * p->n * p->k * p->count;
	}
	return left;
}

/*
 * A product has two gradients, each of its size, and so has a score; what is made again counts. What
 * taps carry may be detached, which leaves one of them: without taps, of token mixers alone.
 */
static void mixer_counts_its_work(const struct mixer *x, unsigned int has)
{
	struct work f = { 0 }, b = { 0 };
	double slack;

	x->work(&f, MB, T_MAX, has, false);
	x->work(&b, MB, T_MAX, has, true);
	slack = 1e-9 * b.flops;
	ok(f.flops > 0 && b.flops >= 2 * f.flops - slack && beyond_products(&f) >= -slack &&
	   beyond_products(&b) >= 2 * beyond_products(&f) - slack,
	   "%s: backward counts twice forward's work, or more (%g, %g)", x->name, f.flops, b.flops);
	free(f.products);
	free(b.products);
}

/* A frozen tensor's gradient stays as it was: bytes of 0xFF. */
static bool untouched(const grad_t *dw, size_t n)
{
	for (size_t i = 0; i < n * sizeof(*dw); i++)
		if (((const unsigned char *)dw)[i] != 0xFF)
			return false;
	return true;
}

static bool param_gradient(struct bench *s, const struct param *p, double *worst)
{
	size_t at = p->offset / sizeof(param_t);
	double error = INFINITY;
	bool good;

	if (p->flags & BY_SIGN)
		return all_finite(s->a.dw + at, param_numel(p));
	if (p->flags & FROZEN)
		return untouched(s->a.dw + at, param_numel(p));
	good = all_finite(s->a.dw + at, param_numel(p)) &&
	       fd_agrees(bench_objective, s, (grad_t *)((param_t *)s->a.w + at), s->a.dw + at,
			 param_numel(p), p->name, &error);
	if (!good)
		diag("%s: %s: error %.3g", s->x->name, p->name, error);
	*worst = MAX(*worst, error);
	return good;
}

static bool tap_gradient(struct bench *s, int tap, double *worst)
{
	size_t n = (size_t)s->a.b * s->a.t * taps[tap].width;
	double error;
	bool good;

	if (!s->a.din[tap])
		return true;
	good = fd_agrees(bench_objective, s, (grad_t *)s->a.in[tap], s->a.din[tap], n, "fd tap",
			 &error);
	if (!good)
		diag("%s: tap %s: error %.3g", s->x->name, taps[tap].name, error);
	*worst = MAX(*worst, error);
	return good;
}

static void mixer_gradients(struct bench *s, const char *what)
{
	const struct mixer *x = s->x;
	size_t n = (size_t)s->a.b * s->a.t;
	double error, worst = 0;
	bool good;

	bench_objective(s);
	memset(s->a.tmp, 0xFF, x->tmp_size);
	x->backward(&s->a);
	good = fd_agrees(bench_objective, s, (grad_t *)s->a.x, (grad_t *)s->a.dx, n * C, "fd x",
			 &error);
	if (!good)
		diag("%s: x: error %.3g", x->name, error);
	worst = error;
	for (int i = 0; i < x->nr_params; i++)
		if (param_exists(&x->params[i], s->a.has))
			good &= param_gradient(s, &x->params[i], &worst);
	for (int tap = 0; tap < NR_TAPS; tap++)
		good &= tap_gradient(s, tap, &worst);
	ok(good, "%s: gradients agree with finite differences, %s (worst %.2g)", x->name, what,
	   worst);
}

/* y up to a position stays, bit for bit unless rows regroup, when x changes after it. */
static void mixer_is_causal(struct bench *s)
{
	int t = s->a.t, cut = (t - 1) / 2;
	size_t n = (size_t)s->a.b * t * C;
	act_t *before = xmalloc(n * sizeof(*before)), *x = (act_t *)s->a.x;
	double tol = s->x->regroups ? SAME_TOL : 0, top = 0;
	bool same = true, moved = t == 1;

	bench_objective(s);
	memcpy(before, s->a.y, n * sizeof(*before));
	for (size_t i = 0; i < n; i++) {
		top = MAX(top, fabs(real(before[i])));
		if ((int)(i / C % t) > cut)
			x[i] = act(real(x[i]) + 1);
	}
	bench_objective(s);
	for (size_t i = 0; i < n; i++) {
		if ((int)(i / C % t) <= cut)
			same &= fabs(real(before[i]) - real(s->a.y[i])) <= tol * top;
		else
			moved |= real(before[i]) != real(s->a.y[i]);
	}
	free(before);
	/* where it leaks, a pool feeds the gate of the next layer, not this y */
	ok(same && moved, "%s: y looks at no later x%s", s->x->name,
	   s->x->leaks ? " (what leaks goes through a tap only)" : "");
}

/* ---- decode ---------------------------------------------------------------- */

/* Largest difference of y in rows from a sequence's length on, over the largest y. */
static double rows_differ(const struct bench *s, const act_t *y, const int32_t *from)
{
	double diff = 0, top = 0;

	for (int i = 0; i < s->a.b; i++)
		for (int j = 0; j < s->a.t; j++)
			for (int c = 0; c < C; c++) {
				size_t at = ((size_t)i * s->a.t + j) * C + c;

				double want = real(s->a.y[at]), off = fabs(want - real(y[at]));

				top = MAX(top, fabs(want));
				if (j >= from[i] && !(off <= diff))
					diff = off;
			}
	return diff / top;
}

/* Every position after a prompt of @len[i] tokens (0: no fill) through step. */
static void mixer_decodes(struct bench *s, const int32_t *len, const char *what)
{
	size_t n = (size_t)s->a.b * s->a.t * C;
	act_t *y = guarded_alloc(n * sizeof(*y));
	double diff;

	bench_decode(s, len, y);
	diff = rows_differ(s, y, len);
	ok(diff <= SAME_TOL && guards_whole(y, n * sizeof(*y)) &&
	   guards_whole(s->cache, s->cache_bytes),
	   "%s: %s gives the rows of the forward (%.2g)", s->x->name, what, diff);
	guarded_free(y);
}

static void mixer_decode(struct bench *s)
{
	int32_t none[MB] = { 0 }, ragged[MB];

	if (s->x->leaks)
		return;
	for (int i = 0; i < MB; i++)
		ragged[i] = i ? MAX(1, T_MAX / 3) : MAX(1, T_MAX - 2);
	mixer_decodes(s, none, "step");
	mixer_decodes(s, ragged, "a fill of ragged prompts, then step,");
}

/* Made again it is what forward left there, and unwritten where that was. */
static void mixer_again(struct bench *s)
{
	size_t bytes = s->x->again_size;
	void *left = xmalloc(MAX(bytes, 1));

	if (bytes) {
		memset(s->a.again, 0xFF, bytes);
		bench_objective(s);
		arch_sync();
		memcpy(left, s->a.again, bytes);
		memset(s->a.again, 0xFF, bytes);
		memset(s->a.tmp, 0xFF, s->x->tmp_size);
		s->x->again(&s->a);
		arch_sync();
		ok(agree(s->a.again, left, ACT, bytes / ACT, AGAIN_TOL), "%s: again makes what forward left", s->x->name);
	}
	free(left);
}

static void test_one(const struct mixer *x, unsigned int has, bool route, const char *what)
{
	struct bench s;

	bench_init(&s, x, has, route, MB, T_MAX);
	if (IS_ENABLED(CONFIG_REAL_DOUBLE))
		mixer_gradients(&s, what);
	mixer_decode(&s);
	mixer_is_causal(&s);
	mixer_again(&s);
	ok(bench_guards(&s), "%s: writes inside its buffers, %s", x->name, what);
}

static unsigned int options_of(const struct mixer *x, int layer)
{
	return x->options ? x->options(layer) : 0;
}

static bool in_block(const char *name)
{
	char *word = xasprintf(" %s ", name);
	bool in = strstr(" " CONFIG_BLOCK " " CONFIG_BLOCK_ALT " ", word);

	free(word);
	return in;
}

/* A tap that is a description is read from its writer, or not at all. */
static bool reads_description(const struct mixer *x)
{
	for (int tap = 0; tap < NR_TAPS; tap++)
		if (x->taps_read & 1u << tap && !taps[tap].width)
			return true;
	return false;
}

int main(void)
{
	device_open(1);
	for (const struct mixer *const *m = __start_tenon_mixers; m < __stop_tenon_mixers; m++) {
		const struct mixer *x = *m;
		unsigned int first = options_of(x, 0), last = options_of(x, NL - 1);

		ok(in_block(x->name), "%s: registered and in BLOCK", x->name);
		mixer_table_covers_struct(x);
		if (x->role == ROLE_ATTN)
			mixer_counts_its_work(x, last);
		test_one(x, x->taps_written | last, true, "all taps read");
		if (first != last)
			test_one(x, x->taps_written | first, true, "options of the first layer");
		if (x->taps_written)
			test_one(x, last, true, "no tap read");
		if (reads_description(x))
			test_one(x, x->taps_written | last, false, "no writer of what it reads");
	}
	return tap_done();
}
