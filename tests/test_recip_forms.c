// SPDX-License-Identifier: MIT
/*
 * Mechanism 2 of recip in its direct and its folded form: the same outputs and the
 * same gradients, in one binary, with and without a gate to read.
 */
#include "check.h"
#include "../model/mlp/recip.h"

/*
 * Both forms are chains of a few sums of at most F terms of either sign. 1e-12 of
 * the largest element in double; in float that many of its roundings, 2^29 times as
 * large.
 */
#define FORMS_TOL (sizeof(act_t) == sizeof(double) ? 1e-12 : 1e-12 * 0x1p29)

enum {
	FB = MIN(B_MAX, 2), FT = MIN(T_MAX, 70),	/* crosses a tile of the kernels */
	ROWS = FB * FT,
};

static act_t *normal(size_t n, const char *stream, double sd)
{
	act_t *x = guarded_alloc(n * sizeof(*x));

	fill_normal(x, n, stream, 0, sd);
	return x;
}

static act_t *empty(size_t n)
{
	return guarded_alloc(n * sizeof(act_t));
}

/* A routing built from random queries and keys. */
static struct route some_route(void)
{
	struct route r = {
		.a = { .b = FB, .t = FT, .heads = H, .dk = L, .dv = L,
		       .q = normal((size_t)ROWS * H * L, "q", 1), .q_row = H * L, .q_head = L,
		       .k = normal((size_t)ROWS * L, "k", 1), .k_row = L,
		       .v = normal((size_t)ROWS * L, "v", 1), .v_row = L,
		       .o = empty((size_t)ROWS * H * L), .o_row = H * L, .o_head = L,
		       .lse = empty((size_t)ROWS * H), .scale = 1 / sqrt(L) },
		.nr = 1, .mode = ROUTE_MODE, .topk = ROUTE_K,
		.tau = CONFIG_RA_MLA_MLP_SPARSE_RMS_THRESHOLD,
		.normalize = IS_ENABLED(CONFIG_RA_MLA_MLP_SPARSE_NORMALIZE),
		.index = guarded_alloc(sizeof(int32_t) * ROWS * (ROUTE_K + 1)),
		.weight = empty((size_t)ROWS * (ROUTE_K + 1)),
		.thr = empty(ROWS), .inv = empty(ROWS) };

	k_attn_fwd(&r.a);
	k_route_build(&r, empty(ROUTE_SCRATCH));
	return r;
}

/* Weights at 1/sqrt(fan_in), those of the call alone. */
static const struct recip_param *some_weights(void)
{
	struct recip_param *w = guarded_alloc(sizeof(*w));
	double sd = 1 / sqrt(F);

	fill_normal((act_t *)w->c_proj, (size_t)C * F, "c_proj", 0, sd);
	fill_normal(w->c_proj_bias, C, "bias", 0, 1);
	fill_normal((act_t *)w->cross_proj, sizeof(w->cross_proj) / sizeof(param_t), "cross_proj",
		    0, sd);
	fill_normal((act_t *)w->gate_proj, (size_t)G * F, "gate_proj", 0, sd);
	return w;
}

/* Forward and backward from one h in one form; everything ends up in @r and @a. */
static void run_form(struct recip *r, struct mixer_args *a, bool folded)
{
	a->y = empty((size_t)ROWS * C);
	a->dw = guarded_alloc(sizeof(struct recip_param) / sizeof(param_t) * sizeof(grad_t));
	*r = (struct recip){
		.a = a, .w = a->w, .rows = ROWS, .gate = a->read & TAP_HEAD_GATE, .cross = true,
		.up = true, .h = normal((size_t)ROWS * F, "h", 1), .mixed = empty((size_t)ROWS * F),
		.fold = empty((size_t)(C + G) * F), .routed = empty((size_t)ROWS * (C + G)),
		.z = empty((size_t)ROWS * G + 1), .ldz = G, .dh = empty((size_t)ROWS * F),
		.dz = normal((size_t)ROWS * G + 1, "dz", 1), .dfold = empty((size_t)(C + G) * F),
		.wide = empty((size_t)ROWS * F), .scratch = empty(ROUTE_SCRATCH) };
	if (!folded)
		recip_mix_fwd(r);
	recip_proj_fwd(r);
	if (folded)
		recip_fold_fwd(r);
	recip_proj_bwd(r);
	if (folded)
		recip_fold_bwd(r);
	else
		recip_mix_bwd(r);
}

static void same(const act_t *x, const act_t *y, size_t n, const char *what, const char *gate)
{
	double worst = 0, size = 0;

	for (size_t i = 0; i < n; i++) {
		worst = fmax(worst, isnan(x[i] - y[i]) ? INFINITY : fabs(x[i] - y[i]));
		size = fmax(size, fabs(x[i]));
	}
	ok(n && size > 0 && worst <= FORMS_TOL * size, "folded = direct, %s: %s (%.2g)", gate, what,
	   worst / size);
}

static void compare_forms(bool gate)
{
	struct mixer_args a[2];
	struct recip r[2];
	const char *name = gate ? "with gate" : "without gate";

	for (int form = 0; form < 2; form++) {
		a[form] = (struct mixer_args){
			.b = FB, .t = FT, .read = gate ? TAP_HEAD_GATE : 0, .w = some_weights(),
			.dy = normal((size_t)ROWS * C, "dy", 1),
			.in = { .route = some_route(), .has_route = true } };
		run_form(&r[form], &a[form], form);
	}
	same(a[0].y, a[1].y, (size_t)ROWS * C, "y", name);
	same(r[0].dh, r[1].dh, (size_t)ROWS * F, "gradient of h", name);
	same(RECIP_GRAD(&r[0], c_proj), RECIP_GRAD(&r[1], c_proj), (size_t)C * F,
	     "gradient of c_proj", name);
	same(RECIP_GRAD(&r[0], cross_proj), RECIP_GRAD(&r[1], cross_proj), (size_t)F * F,
	     "gradient of cross_proj", name);
	if (!gate)
		return;
	same(r[0].z, r[1].z, (size_t)ROWS * G, "z", name);
	same(RECIP_GRAD(&r[0], gate_proj), RECIP_GRAD(&r[1], gate_proj), (size_t)G * F,
	     "gradient of gate_proj", name);
}

int main(void)
{
	arch_init(0, 1);
	if (!RECIP_AVERAGE) {
		ok(true, "folded = direct # SKIP needs mechanism 2 with averaged heads");
		return tap_done();
	}
	compare_forms(false);
	if (RECIP_GATE)
		compare_forms(true);
	return tap_done();
}
