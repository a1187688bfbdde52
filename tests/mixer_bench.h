/* SPDX-License-Identifier: MIT */
/* One mixer with buffers for one call, and what its outputs come to. */
#ifndef TENON_MIXER_BENCH_H
#define TENON_MIXER_BENCH_H

#include "check.h"

enum { MB = B_MAX < 2 ? B_MAX : 2 };	/* sequences of these calls */

/*
 * @elems: of its parameters
 * @r: objective's weights of y, [n][C]
 * @rtap: of the written taps
 * @published: descriptions of the last forward
 * @writer: of the descriptions it reads, NULL: none
 * @cache: decode state
 */
struct bench {
	const struct mixer *x;
	struct mixer_args a;
	size_t elems;
	act_t *r;
	void *rtap[NR_TAPS];
	const void *published[NR_TAPS];
	double aux;
	struct bench *writer;
	void *cache, *step_tmp;
	size_t cache_bytes;
};

static inline void *tap_rows(int tap, int n, const char *stream, double mean, double sd)
{
	size_t rows = n * taps[tap].width;
	void *x = guarded_alloc(rows * taps[tap].elem);

	if (taps[tap].elem == sizeof(acc_t))
		fill_normal_acc(x, rows, stream, mean, sd);
	else
		fill_normal(x, rows, stream, mean, sd);
	return x;
}

static inline void bench_params(struct bench *s)
{
	char *w;

	s->elems = param_module_elems(s->x->params, s->x->nr_params, s->a.has);
	w = guarded_alloc(s->elems * sizeof(param_t));
	memset(w, 0, s->elems * sizeof(param_t));
	for (int i = 0; i < s->x->nr_params; i++)
		if (param_exists(&s->x->params[i], s->a.has))
			fill_param(&s->x->params[i], w + s->x->params[i].offset,
				   s->x->params[i].name);
	s->a.w = w;
	s->a.dw = guarded_alloc(s->elems * sizeof(grad_t));
}

/* Of a written tap: rows of a forward, or of a step. */
static inline size_t bench_out_bytes(const struct bench *s, int tap)
{
	return s->a.b * taps[tap].elem * MAX(s->a.t * taps[tap].width, taps[tap].step_width);
}

static inline void bench_tap(struct bench *s, int tap, int n)
{
	unsigned int bit = 1u << tap;
	size_t bytes = n * taps[tap].width * taps[tap].elem;

	if (s->x->taps_read & bit && taps[tap].width) {
		/* factors stand near 1, everything else near 0 */
		double mean = taps[tap].elem == sizeof(acc_t) ? 1 : 0;

		s->a.in[tap] = tap_rows(tap, n, "tap", mean, 0.3);
		if (!taps[tap].detached)
			s->a.din[tap] = guarded_alloc(bytes);
	}
	if (s->a.has & bit && taps[tap].width && !taps[tap].detached) {
		s->rtap[tap] = tap_rows(tap, n, "rtap", 0, 1);
		s->a.dout[tap] = s->rtap[tap];
	}
	if (s->a.has & bit)
		s->a.out[tap] = guarded_alloc(bench_out_bytes(s, tap));
}

static void bench_init(struct bench *s, const struct mixer *x, unsigned int has, bool route, int b,
		       int t);

/* <y, r> + sum of <written tap, r'> + aux; a detached tap is not part of it. */
static inline double bench_objective(void *ctx)
{
	struct bench *s = ctx;
	int n = s->a.b * s->a.t;
	double sum;

	s->aux = 0;
	memset(s->a.tmp, 0xFF, s->x->tmp_size);
	s->x->forward(&s->a);
	arch_sync();
	sum = dot_of(s->a.y, s->r, ACT, (size_t)n * C) + s->aux;
	for (int tap = 0; tap < NR_TAPS; tap++)
		if (s->rtap[tap])
			sum += dot_of(s->a.out[tap], s->rtap[tap], taps[tap].elem,
				      n * taps[tap].width);
	return sum;
}

/* A description comes from a forward of whichever mixer writes it. */
static inline void bench_writer(struct bench *s, int tap)
{
	for (const struct mixer *const *m = __start_tenon_mixers; m < __stop_tenon_mixers; m++) {
		if (!((*m)->taps_written & 1u << tap))
			continue;
		s->writer = xcalloc(1, sizeof(*s->writer));
		bench_init(s->writer, *m, 1u << tap, true, s->a.b, s->a.t);
		bench_objective(s->writer);
		s->a.in[tap] = s->writer->published[tap];
		return;
	}
}

static inline void bench_cache(struct bench *s)
{
	size_t size = s->x->cache ? s->x->cache(s->a.has).size : 0;

	s->cache_bytes = size * s->a.b;
	s->cache = guarded_alloc(s->cache_bytes);
	s->step_tmp = guarded_alloc(MAX(s->x->step_tmp_size, s->x->tmp_size));
}

static void bench_init(struct bench *s, const struct mixer *x, unsigned int has, bool route, int b,
		       int t)
{
	int n = b * t;

	memset(s, 0, sizeof(*s));
	s->x = x;
	s->a = (struct mixer_args){ .b = b, .t = t, .has = has, .publish = s->published,
				    .aux = x->aux ? &s->aux : NULL };
	bench_params(s);
	s->a.act = guarded_alloc(x->act_size);
	s->a.again = guarded_alloc(x->again_size);
	s->a.host = xcalloc(1, MAX(x->host_size, 1));
	s->a.tmp = guarded_alloc(x->tmp_size);
	s->a.x = guarded_alloc(n * C * sizeof(act_t));
	fill_normal((act_t *)s->a.x, n * C, "x", 0, 1);
	s->a.y = guarded_alloc(n * C * sizeof(act_t));
	s->r = guarded_alloc(n * C * sizeof(act_t));
	fill_normal(s->r, n * C, "r", 0, 1);
	s->a.dy = s->r;
	s->a.dx = guarded_alloc(n * C * sizeof(act_t));
	for (int tap = 0; tap < NR_TAPS; tap++) {
		bench_tap(s, tap, n);
		if (x->taps_read & 1u << tap && !taps[tap].width && route)
			bench_writer(s, tap);
	}
	bench_cache(s);
}

static inline bool bench_guards(const struct bench *s)
{
	size_t rows = (size_t)s->a.b * s->a.t * C * sizeof(act_t);
	bool whole = true;

	for (int tap = 0; tap < NR_TAPS; tap++)
		if (s->a.out[tap])
			whole &= guards_whole(s->a.out[tap], bench_out_bytes(s, tap));
	return whole && guards_whole(s->a.w, s->elems * sizeof(param_t)) &&
	       guards_whole(s->a.dw, s->elems * sizeof(grad_t)) &&
	       guards_whole(s->a.act, s->x->act_size) &&
	       guards_whole(s->a.again, s->x->again_size) && guards_whole(s->a.tmp, s->x->tmp_size) &&
	       guards_whole(s->a.x, rows) && guards_whole(s->a.y, rows) &&
	       guards_whole(s->a.dx, rows);
}

/* ---- decode ---------------------------------------------------------------- */

/* Rows at @pos[i] of [b][t][bytes], one behind the other. */
static inline void take_rows(const struct bench *s, char *dst, const void *src, size_t bytes,
			     const int32_t *pos)
{
	for (int i = 0; i < s->a.b; i++)
		memcpy(dst + i * bytes,
		       (const char *)src + ((size_t)i * s->a.t + pos[i]) * bytes, bytes);
}

/* One step of every sequence at @pos[i]; @y [b][C]. */
static inline void bench_step(struct bench *s, const int32_t *pos, act_t *y)
{
	struct mixer_args a = s->a;
	act_t *x = xmalloc(sizeof(*x) * a.b * C);
	void *in[NR_TAPS + 1] = { NULL };

	take_rows(s, (char *)x, s->a.x, sizeof(*x) * C, pos);
	for (int tap = 0; tap < NR_TAPS; tap++) {
		size_t row = taps[tap].width * taps[tap].elem;

		if (!a.in[tap])
			continue;
		if (taps[tap].width) {
			a.in[tap] = in[tap] = xmalloc(row * a.b);
			take_rows(s, in[tap], s->a.in[tap], row, pos);
		} else {
			a.in[tap] = s->writer->a.out[tap];
		}
	}
	memset(s->step_tmp, 0xFF, MAX(s->x->step_tmp_size, s->x->tmp_size));
	a.t = 1;
	a.act = NULL;
	a.tmp = s->step_tmp;
	a.x = x;
	a.y = y;
	a.aux = NULL;
	s->x->step(&a, s->cache, pos);
	arch_sync();
	for (int tap = 0; tap < NR_TAPS; tap++)
		free(in[tap]);
	free(x);
}

/* The state that @len[i] steps would have left (0: none), from a forward. */
static inline void bench_fill(struct bench *s, const int32_t *len)
{
	struct mixer_args a = s->a;

	memset(s->cache, 0xFF, s->cache_bytes);
	if (s->writer)
		bench_fill(s->writer, len);
	bench_objective(s);
	a.aux = NULL;
	if (len[0] && s->x->fill)
		s->x->fill(&a, s->cache, len);
	arch_sync();
}

/*
 * Rows of y [b][t][C] from @len[i] on, by steps after a prompt. Sequences whose prompt
 * is longer wait at their last position, which is computed again.
 */
static inline void bench_decode(struct bench *s, const int32_t *len, act_t *y)
{
	act_t *row = xmalloc(sizeof(*row) * s->a.b * C), *unused = xmalloc(sizeof(*row) * s->a.b * C);
	int32_t pos[MB];
	int first = T_MAX;

	bench_fill(s, len);
	for (int i = 0; i < s->a.b; i++)
		first = MIN(first, len[i]);
	for (int n = 0; n < s->a.t - first; n++) {
		for (int i = 0; i < s->a.b; i++)
			pos[i] = MIN(len[i] + n, s->a.t - 1);
		if (s->writer)
			bench_step(s->writer, pos, unused);
		bench_step(s, pos, row);
		for (int i = 0; i < s->a.b; i++)
			if (len[i] + n < s->a.t)
				memcpy(y + ((size_t)i * s->a.t + pos[i]) * C, row + (size_t)i * C,
				       sizeof(*row) * C);
	}
	free(unused);
	free(row);
}

#endif
