// SPDX-License-Identifier: MIT
/*
 * Every registered mixer, alone: its table covers its struct, its gradients of x, of
 * every parameter and of every tap agree with finite differences, it writes inside its
 * buffers, it overwrites what it must, and it looks at no later position.
 */
#include "check.h"
#include "../model/routing.h"

enum { MB = B_MAX < 2 ? B_MAX : 2 };	/* sequences of these calls */

/*
 * struct bench - one mixer with buffers for one call
 */
struct bench {
	const struct mixer *x;
	struct mixer_args a;
	struct taps out;
	size_t elems;
	act_t *r;			/* objective's weights of y, [n][C] */
	struct tap_grads rtap;		/* of the written taps */
};

static size_t tap_width(unsigned int bit)
{
	return bit == TAP_HEAD_GATE ? H : bit & (TAP_LATENT | TAP_LATENT_MIX) ? L : 0;
}

/* The member of a tap_grads or taps (same first three) for a bit. */
static act_t **grad_member(struct tap_grads *g, unsigned int bit)
{
	return bit == TAP_HEAD_GATE ? &g->head_gate : bit == TAP_LATENT ? &g->latent :
	       &g->latent_mix;
}

static const act_t **tap_member(struct taps *t, unsigned int bit)
{
	return bit == TAP_HEAD_GATE ? &t->head_gate : bit == TAP_LATENT ? &t->latent :
	       &t->latent_mix;
}

static act_t *random_rows(int n, size_t width, const char *stream, double mean, double sd)
{
	act_t *x = guarded_alloc(n * width * sizeof(*x));

	fill_normal(x, n * width, stream, mean, sd);
	return x;
}

static void bench_params(struct bench *s)
{
	param_t *w;

	s->elems = param_module_elems(s->x->params, s->x->nr_params, s->a.read);
	w = guarded_alloc(s->elems * sizeof(*w));
	memset(w, 0, s->elems * sizeof(*w));
	for (int i = 0; i < s->x->nr_params; i++)
		if (param_exists(&s->x->params[i], s->a.read))
			fill_param(&s->x->params[i], w + s->x->params[i].offset / sizeof(*w),
				   s->x->params[i].name);
	s->a.w = w;
	s->a.dw = guarded_alloc(s->elems * sizeof(grad_t));
}

static void bench_taps(struct bench *s, const struct taps *route, int n)
{
	for (int tap = 0; tap < NR_TAPS; tap++) {
		unsigned int bit = 1u << tap;
		size_t w = tap_width(bit);
		double mean = bit == TAP_HEAD_GATE ? 1 : 0;

		if (w && (s->x->taps_read & bit)) {
			*tap_member(&s->a.in, bit) = random_rows(n, w, "tap", mean, 0.3);
			if (!(bit & TAPS_DETACHED))
				*grad_member(&s->a.din, bit) = guarded_alloc(n * w * sizeof(act_t));
		}
		if (w && (s->a.read & bit & ~TAPS_DETACHED)) {
			*grad_member(&s->rtap, bit) = random_rows(n, w, "rtap", 0, 1);
			*grad_member(&s->a.dout, bit) = *grad_member(&s->rtap, bit);
		}
	}
	if (s->x->taps_read & TAP_ROUTE) {
		s->a.in.route = route->route;
		s->a.in.has_route = route->has_route;
	}
}

static void bench_init(struct bench *s, const struct mixer *x, unsigned int read,
		       const struct taps *route, int b, int t)
{
	int n = b * t;

	memset(s, 0, sizeof(*s));
	s->x = x;
	s->a = (struct mixer_args){ .b = b, .t = t, .read = read, .out = &s->out };
	bench_params(s);
	s->a.act = guarded_alloc(x->act_size);
	s->a.tmp = guarded_alloc(x->tmp_size);
	s->a.x = random_rows(n, C, "x", 0, 1);
	s->a.y = guarded_alloc(n * C * sizeof(act_t));
	s->r = random_rows(n, C, "r", 0, 1);
	s->a.dy = s->r;
	s->a.dx = guarded_alloc(n * C * sizeof(act_t));
	bench_taps(s, route, n);
}

static bool bench_guards(const struct bench *s)
{
	size_t rows = (size_t)s->a.b * s->a.t * C * sizeof(act_t);

	return guards_whole(s->a.w, s->elems * sizeof(param_t)) &&
	       guards_whole(s->a.dw, s->elems * sizeof(grad_t)) &&
	       guards_whole(s->a.act, s->x->act_size) && guards_whole(s->a.tmp, s->x->tmp_size) &&
	       guards_whole(s->a.x, rows) && guards_whole(s->a.y, rows) &&
	       guards_whole(s->a.dx, rows);
}

/* <y, r> + sum of <written tap, r'>; a detached tap is not part of it. */
static double objective(void *ctx)
{
	struct bench *s = ctx;
	int n = s->a.b * s->a.t;
	double sum;

	memset(s->a.tmp, 0xFF, s->x->tmp_size);
	s->x->forward(&s->a);
	sum = dot(s->a.y, s->r, (size_t)n * C);
	for (int tap = 0; tap < NR_TAPS; tap++) {
		unsigned int bit = 1u << tap;

		if (tap_width(bit) && *grad_member(&s->rtap, bit))
			sum += dot(*tap_member(&s->out, bit), *grad_member(&s->rtap, bit),
				   n * tap_width(bit));
	}
	return sum;
}

static void mixer_table_covers_struct(const struct mixer *x)
{
	size_t end = 0;
	bool fits = true, tail = false;

	for (int i = 0; i < x->nr_params; i++) {
		const struct param *p = &x->params[i];

		fits &= p->offset >= end && p->offset - end < TENSOR_ALIGN &&
			p->offset % TENSOR_ALIGN == 0;
		fits &= !tail || p->if_read;
		tail |= p->if_read != 0;
		end = p->offset + param_numel(p) * sizeof(param_t);
	}
	ok(fits && ROUND_UP(end, TENSOR_ALIGN) == x->param_size,
	   "%s: table covers struct, tensors that may be unread last", x->name);
}

static void mixer_gradients(struct bench *s, const char *what)
{
	const struct mixer *x = s->x;
	size_t n = (size_t)s->a.b * s->a.t;
	bool finite = true, good = true;
	double error, worst = 0;

	objective(s);
	memset(s->a.tmp, 0xFF, x->tmp_size);
	x->backward(&s->a);
	good &= fd_agrees(objective, s, (act_t *)s->a.x, s->a.dx, n * C, "fd x", &error);
	worst = MAX(worst, error);
	if (!good)
		diag("%s: x: error %.3g", x->name, error);
	for (int i = 0; i < x->nr_params; i++) {
		const struct param *p = &x->params[i];
		size_t at = p->offset / sizeof(param_t);

		if (!param_exists(p, s->a.read))
			continue;
		finite &= all_finite(s->a.dw + at, param_numel(p));
		if (!fd_agrees(objective, s, (param_t *)s->a.w + at, s->a.dw + at, param_numel(p),
			       p->name, &error)) {
			diag("%s: %s: error %.3g", x->name, p->name, error);
			good = false;
		}
		worst = MAX(worst, error);
	}
	for (int tap = 0; tap < NR_TAPS; tap++) {
		unsigned int bit = 1u << tap;

		if (!tap_width(bit) || !*grad_member(&s->a.din, bit))
			continue;
		if (!fd_agrees(objective, s, (act_t *)*tap_member(&s->a.in, bit),
			       *grad_member(&s->a.din, bit), n * tap_width(bit), "fd tap", &error)) {
			diag("%s: tap %d: error %.3g", x->name, tap, error);
			good = false;
		}
		worst = MAX(worst, error);
	}
	ok(good && finite, "%s: gradients agree with finite differences, %s (worst %.2g)",
	   x->name, what, worst);
}

/* y up to a position stays, bit for bit, when x changes after it. */
static void mixer_is_causal(struct bench *s)
{
	int t = s->a.t, cut = (t - 1) / 2;
	bool leaks = IS_ENABLED(CONFIG_RA_MLA_MLP_GATE_POOL_SEQUENCE) && s->x->role == ROLE_MLP;
	size_t n = (size_t)s->a.b * t * C;
	act_t *before = xmalloc(n * sizeof(*before)), *x = (act_t *)s->a.x;
	bool same = true, moved = t == 1;

	objective(s);
	memcpy(before, s->a.y, n * sizeof(*before));
	for (size_t i = 0; i < n; i++)
		x[i] += (int)(i / C % t) > cut ? (act_t)1 : 0;
	objective(s);
	for (size_t i = 0; i < n; i++) {
		if ((int)(i / C % t) <= cut)
			same &= before[i] == s->a.y[i];
		else
			moved |= before[i] != s->a.y[i];
	}
	free(before);
	/* the pool feeds the gate of the next layer, not this y */
	ok(same && moved, "%s: y looks at no later x%s", s->x->name,
	   leaks ? " (the sequence pool leaks through the gate tap only)" : "");
}

/* The tap ROUTE for readers, from whichever mixer writes it. */
static struct taps make_route(void)
{
	static struct bench writer;
	struct taps none = { .has_route = false };

	for (const struct mixer *const *m = __start_tenon_mixers; m < __stop_tenon_mixers; m++) {
		if (!((*m)->taps_written & TAP_ROUTE))
			continue;
		bench_init(&writer, *m, TAP_ROUTE, &none, MB, T_MAX);
		objective(&writer);
		writer.out.has_route = true;
		return writer.out;
	}
	return none;
}

static void test_one(const struct mixer *x, unsigned int read, const struct taps *route,
		     const char *what)
{
	struct bench s;

	bench_init(&s, x, read, route, MB, T_MAX);
	if (IS_ENABLED(CONFIG_REAL_DOUBLE))
		mixer_gradients(&s, what);
	mixer_is_causal(&s);
	ok(bench_guards(&s), "%s: writes inside its buffers, %s", x->name, what);
}

int main(void)
{
	struct taps route, none = { .has_route = false };

	arch_init(0, 1);
	ok(!ROUTE_ROWS || ROUTE_SCRATCH >= k_route_scratch(B_MAX, T_MAX, ROUTE_ROWS, ROUTE_K),
	   "the planned routing scratch is enough");
	route = make_route();
	for (const struct mixer *const *m = __start_tenon_mixers; m < __stop_tenon_mixers; m++) {
		const struct mixer *x = *m;

		ok(strstr(" " CONFIG_BLOCK " ", x->name), "%s: registered and in BLOCK", x->name);
		mixer_table_covers_struct(x);
		test_one(x, x->taps_written, &route, "all taps read");
		if (x->taps_written)
			test_one(x, 0, &route, "no tap read");
		if (x->taps_read & TAP_ROUTE)
			test_one(x, x->taps_written, &none, "no route");
	}
	return tap_done();
}
