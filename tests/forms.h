/* SPDX-License-Identifier: MIT */
/*
 * One mixer in two forms that are equal: the same call of both, and what must come out
 * the same.
 */
#ifndef TENON_FORMS_H
#define TENON_FORMS_H

#include "mixer_bench.h"

/*
 * Both forms are chains of a few sums of at most F or T terms of either sign. 1e-12 of
 * the largest element in double; in float that many of its roundings, 2^29 times as
 * large. In bf16 the forms round other intermediate results, eight on the longest way
 * from x to a gradient, each in both.
 */
#define FORMS_TOL (sizeof(acc_t) == sizeof(double) ? 1e-12 : \
		   ACT == ACC ? 1e-12 * 0x1p29 : 2 * 8 * ACT_ROUND)

/* What differs most so far, relative to its tensor's largest element. */
struct forms_diff {
	const char *what;
	double worst;
};

static inline void forms_compare(struct forms_diff *d, const char *what, const void *x,
				 const void *y, size_t elem, size_t n)
{
	double worst = 0, size = 0;

	for (size_t i = 0; i < n; i++) {
		double one = get(x, elem, i), off = fabs(one - get(y, elem, i));

		worst = fmax(worst, isnan(off) ? INFINITY : off);
		size = fmax(size, fabs(one));
	}
	if (worst > d->worst * size) {
		d->worst = size > 0 ? worst / size : INFINITY;
		d->what = what;
	}
}

static inline void forms_compare_params(struct forms_diff *d, const struct bench *s,
					const struct bench *other)
{
	for (int i = 0; i < s->x->nr_params; i++) {
		const struct param *p = &s->x->params[i];
		size_t at = p->offset / sizeof(param_t);

		if (param_exists(p, s->a.has))
			forms_compare(d, p->name, s->a.dw + at, other->a.dw + at, ACC,
				      param_numel(p));
	}
}

/* Forward and backward of both forms. */
static inline void forms_agree(const struct mixer *x, const struct mixer *other, unsigned int has,
			       const char *what)
{
	struct forms_diff d = { "", 0 };
	struct bench s[2];
	size_t n;

	for (int i = 0; i < 2; i++) {
		bench_init(&s[i], i ? other : x, has, true, MB, T_MAX);
		bench_objective(&s[i]);
		memset(s[i].a.tmp, 0xFF, s[i].x->tmp_size);
		s[i].x->backward(&s[i].a);
		arch_sync();
	}
	n = (size_t)s[0].a.b * s[0].a.t;
	forms_compare(&d, "y", s[0].a.y, s[1].a.y, ACT, n * C);
	forms_compare(&d, "dx", s[0].a.dx, s[1].a.dx, ACT, n * C);
	forms_compare_params(&d, &s[0], &s[1]);
	for (int tap = 0; tap < NR_TAPS; tap++) {
		if (has & 1u << tap && taps[tap].width)
			forms_compare(&d, taps[tap].name, s[0].a.out[tap], s[1].a.out[tap],
				      taps[tap].elem, n * taps[tap].width);
		if (s[0].a.din[tap])
			forms_compare(&d, taps[tap].name, s[0].a.din[tap], s[1].a.din[tap],
				      taps[tap].elem, n * taps[tap].width);
	}
	ok(d.worst <= FORMS_TOL && bench_guards(&s[1]), "%s, %s: %s = %s (%.2g, %s)", x->name, what,
	   x->form, other->form, d.worst, d.what);
}

#endif
