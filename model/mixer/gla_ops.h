/* SPDX-License-Identifier: MIT */
/* What gla and mfa_gla do with the tensors and buffers of gla.h, which includes this. */
#ifndef TENON_GLA_OPS_H
#define TENON_GLA_OPS_H

#include <math.h>

#include "kernels_conv.h"
#include "../linear.h"

/* ---- from x to what the recurrence reads ---------------------------------------------- */

/* The matrix of stream @i. */
static const param_t *stream_weight(const struct gla_param *w, int i)
{
	const param_t *const of[] = { w->q[0], w->k[0], w->v[0] };

	return of[i];
}

static struct conv conv_of(const struct gla_rows *s, int i)
{
	const void *const of[] = { s->w->q_conv, s->w->k_conv, s->w->v_conv };

	return (struct conv){ .b = s->b, .t = s->t, .c = width_of[i], .taps = CONV,
			      .x = s->stream[i], .x_row = width_of[i], .w = of[i],
			      .y = s->conv[i], .y_row = width_of[i] };
}

static void convolve(const struct gla_rows *s)
{
	for (int i = 0; CONV && i < NR_STREAMS; i++) {
		struct conv conv = conv_of(s, i);

		k_conv_fwd(&conv);
	}
}

static void project(const struct gla_rows *s)
{
	const struct gla_param *w = s->w;
	int n = s->b * s->t;

	for (int i = 0; i < NR_STREAMS; i++)
		linear_fwd(s->stream[i], s->x, stream_weight(w, i), n, width_of[i], C, 1, 0);
	if (RANK)
		linear_fwd(s->low, s->x, w->gk_low, n, RANK, C, 1, 0);
	if (GATED)
		k_gemm(&(struct gemm){ .m = n, .n = GATES, .k = GATE_IN, .tb = true,
				       .a = RANK ? s->low : s->x, .lda = GATE_IN, .b = w->gk,
				       .ldb = GATE_IN, .c = s->z, .ldc = GATES, .alpha = 1,
				       .ep = GEMM_BIAS, .bias = w->gk_bias });
	if (OUT_GATE)
		linear_fwd(s->gate, s->x, w->g_proj, n, OUT, C, 1, 0);
}

/* y[n][H][out] = x[n][in] map_h */
static void map_heads(act_t *y, const act_t *x, const void *map, int n, int in, int out)
{
	k_gemm(&(struct gemm){ .m = n, .n = out, .k = in, .a = x, .lda = in, .b = map, .ldb = out,
			       .sb = (long)in * out, .c = y, .ldc = (long)H * out, .sc = out,
			       .alpha = 1, .batch = H });
}

static void map_streams(const struct gla_rows *s)
{
	if (MAPS_Q)
		map_heads(s->q, s->conv[0], s->w->q_map, s->b * s->t, WIDTH_Q, KEY);
	if (MAPS_V)
		map_heads(s->v, s->conv[2], s->w->v_map, s->b * s->t, WIDTH_V, VALUE);
}

static void keys_and_decays(const struct gla_rows *s)
{
	int n = s->b * s->t;

	if (K_NORM)
		k_unit_fwd(s->k, s->conv[1], n * KEYS, KEY);
	if (GATED)
		k_log_decay_fwd(s->g, s->z, (size_t)n * GATES, CONFIG_GLA_GATE_TAU);
}

static struct linattn recurrence(const struct gla_rows *s)
{
	return (struct linattn){
		.b = s->b, .t = s->t, .heads = H, .group = H, .shared = SHARED, .dk = KEY,
		.dv = VALUE, .chunk = CONFIG_LINEAR_CHUNK,
		.decay = VECTOR ? LINATTN_VECTOR : GATED ? LINATTN_SCALAR :
			 IS_ENABLED(CONFIG_GLA_DECAY_FIXED) ? LINATTN_FIXED : LINATTN_NONE,
		.scale = IS_ENABLED(CONFIG_GLA_Q_SCALE) ? 1 / sqrt(KEY) : 1,
		.q = s->q, .q_row = (long)H * KEY, .q_head = KEY,
		.k = s->k, .k_row = WIDTH_K, .k_head = KEY,
		.v = s->v, .v_row = MAPS_V ? OUT : WIDTH_V, .v_head = VALUE,
		.g = s->g, .g_row = GATES, .g_head = GATE_HEAD, .o = s->o,
	};
}

/* ---- what comes out -------------------------------------------------------------------- */

static struct gated_norm output_norm(const struct gla_rows *s)
{
	return (struct gated_norm){
		.n = s->b * s->t, .groups = H, .width = VALUE, .epsilon = CONFIG_NORM_EPSILON,
		.x = s->o, .z = OUT_GATE ? s->gate : NULL, .z_row = OUT,
		.w = OUT_NORM ? s->w->g_norm : NULL, .rstd = s->rstd, .y = s->out };
}

static void norm_out(const struct gla_rows *s)
{
	struct gated_norm norm = output_norm(s);

	if (OUT_NORM || OUT_GATE)
		k_gated_norm_fwd(&norm);
}

static void project_out(const struct gla_rows *s, act_t *y)
{
	linear_fwd(y, s->out, s->w->o_proj, s->b * s->t, C, OUT, 1, 0);
}

/* ---- forward and backward --------------------------------------------------------------- */

static void gla_forward(const struct mixer_args *a)
{
	struct gla_act *act = a->act;
	struct gla_again *again = a->again;
	struct gla_rows s = GLA_ROWS(a, act, again);
	struct linattn mix = recurrence(&s);

	project(&s);
	convolve(&s);
	map_streams(&s);
	keys_and_decays(&s);
	linear_rnn_forward(a, &mix);
	norm_out(&s);
	project_out(&s, a->y);
}

static void gla_make_again(const struct mixer_args *a)
{
	struct gla_act *act = a->act;
	struct gla_again *again = a->again;
	struct gla_rows s = GLA_ROWS(a, act, again);

	convolve(&s);
	keys_and_decays(&s);
	norm_out(&s);
}

/* To the gradient of o; the first part of dx where there is a gate. */
static void output_bwd(const struct mixer_args *a, const struct gla_rows *s)
{
	struct gla_tmp *tmp = a->tmp;
	struct gated_norm norm = output_norm(s);
	int n = s->b * s->t;

	linear_dw(GRAD(a->dw, struct gla_param, o_proj), NULL, a->dy, s->out, n, C, OUT, 1, 0);
	linear_dx(tmp->d_o[0], a->dy, s->w->o_proj, n, C, OUT, 1, 0);
	if (OUT_NORM || OUT_GATE)
		k_gated_norm_bwd(&norm, tmp->d_o[0], OUT_GATE ? (act_t *)tmp->dgate : NULL,
				 OUT_NORM ? GRAD(a->dw, struct gla_param, g_norm) : NULL,
				 tmp->d_o[0]);
	if (OUT_GATE) {
		linear_dw(GRAD(a->dw, struct gla_param, g_proj), NULL, tmp->dgate, a->x, n, OUT, C,
			  1, 0);
		linear_dx(a->dx, tmp->dgate, s->w->g_proj, n, OUT, C, 1, 0);
	}
}

static void decays_bwd(const struct mixer_args *a, const struct gla_rows *s)
{
	struct gla_tmp *tmp = a->tmp;
	act_t *dz = (act_t *)tmp->dz, *dlow = (act_t *)tmp->dlow;
	int n = s->b * s->t;

	k_log_decay_bwd(dz, (acc_t *)tmp->dg, s->z, (size_t)n * GATES, CONFIG_GLA_GATE_TAU);
	k_gemm_grad(&(struct gemm){
		.m = GATES, .n = GATE_IN, .k = n, .ta = true, .a = dz, .lda = GATES,
		.b = RANK ? s->low : s->x, .ldb = GATE_IN, .alpha = 1,
		.c = GRAD(a->dw, struct gla_param, gk), .ldc = GATE_IN,
		.db = GRAD(a->dw, struct gla_param, gk_bias) });
	if (!RANK) {
		linear_dx(a->dx, dz, s->w->gk, n, GATES, C, 1, OUT_GATE);
		return;
	}
	linear_dx(dlow, dz, s->w->gk, n, GATES, RANK, 1, 0);
	linear_dw(GRAD(a->dw, struct gla_param, gk_low), NULL, dlow, s->x, n, RANK, C, 1, 0);
	linear_dx(a->dx, dlow, s->w->gk_low, n, RANK, C, 1, OUT_GATE);
}

/* dmap_h = x^T dy_h; dx = the heads' dy_h map_h^T, added up in their order */
static void map_heads_bwd(act_t *dx, grad_t *dmap, const act_t *dy, const act_t *x,
			  const param_t *map, int n, int in, int out)
{
	k_gemm_grad(&(struct gemm){ .m = in, .n = out, .k = n, .ta = true, .a = x, .lda = in,
				    .b = dy, .ldb = (long)H * out, .sb = out, .c = dmap, .ldc = out,
				    .sc = (long)in * out, .alpha = 1, .batch = H });
	for (int h = 0; h < H; h++)
		k_gemm(&(struct gemm){ .m = n, .n = in, .k = out, .tb = true, .a = dy + h * out,
				       .lda = (long)H * out, .b = map + (size_t)h * in * out,
				       .ldb = out, .c = dx, .ldc = in, .alpha = 1, .beta = h > 0 });
}

/* From the gradient of convolved stream @i, which is used up. */
static void stream_bwd(const struct mixer_args *a, const struct gla_rows *s, int i, act_t *d)
{
	grad_t *const dw[] = { GRAD(a->dw, struct gla_param, q), GRAD(a->dw, struct gla_param, k),
			       GRAD(a->dw, struct gla_param, v) };
	grad_t *const dconv[] = { GRAD(a->dw, struct gla_param, q_conv),
				  GRAD(a->dw, struct gla_param, k_conv),
				  GRAD(a->dw, struct gla_param, v_conv) };
	struct conv conv = conv_of(s, i);
	int n = s->b * s->t;

	if (CONV)
		k_conv_bwd(&conv, d, dconv[i], NULL, d);
	linear_dw(dw[i], NULL, d, s->x, n, width_of[i], C, 1, 0);
	linear_dx(a->dx, d, stream_weight(s->w, i), n, width_of[i], C, 1, i || OUT_GATE || GATED);
}

static void gla_backward(const struct mixer_args *a)
{
	struct gla_act *act = a->act;
	struct gla_again *again = a->again;
	struct gla_tmp *tmp = a->tmp;
	struct gla_rows s = GLA_ROWS(a, act, again);
	struct linattn mix = recurrence(&s);
	act_t *dq = tmp->dq[0], *dk = tmp->dk[0], *dv = tmp->dv[0], *d = (act_t *)tmp->dstream;
	int n = s.b * s.t;

	output_bwd(a, &s);
	k_linattn_bwd(&mix, &(struct linattn_grad){ .d_o = tmp->d_o[0], .dq = dq, .dk = dk, .dv = dv,
						    .dg = (acc_t *)tmp->dg, .scratch = tmp->scratch });
	if (GATED)
		decays_bwd(a, &s);
	if (K_NORM)
		k_unit_bwd(dk, dk, s.conv[1], n * KEYS, KEY);
	if (MAPS_Q)
		map_heads_bwd(d, GRAD(a->dw, struct gla_param, q_map), dq, s.conv[0],
			      (const param_t *)s.w->q_map, n, WIDTH_Q, KEY);
	stream_bwd(a, &s, 0, MAPS_Q ? d : dq);
	stream_bwd(a, &s, 1, dk);
	if (MAPS_V)
		map_heads_bwd(d, GRAD(a->dw, struct gla_param, v_map), dv, s.conv[2],
			      (const param_t *)s.w->v_map, n, WIDTH_V, VALUE);
	stream_bwd(a, &s, 2, MAPS_V ? d : dv);
}

/* ---- decode -------------------------------------------------------------------------------- */

enum {
	SEQ = sizeof(struct gla_cache) / sizeof(act_t),		/* from sequence to sequence */
	SEQ_STATE = sizeof(struct gla_cache) / sizeof(acc_t),
};

static struct cache_rows ring_of(struct gla_cache *cache, int i)
{
	act_t *const of[] = { (act_t *)cache->q, (act_t *)cache->k, (act_t *)cache->v };

	return (struct cache_rows){ .base = of[i], .seq = SEQ, .row = width_of[i],
				    .slots = CONV - 1, .width = width_of[i] };
}

static void gla_step(const struct mixer_args *a, void *cache, const int32_t *pos)
{
	struct gla_step_tmp *tmp = a->tmp;
	struct gla_rows s = GLA_ROWS(a, tmp, tmp);
	struct linattn mix = recurrence(&s);

	project(&s);
	for (int i = 0; CONV && i < NR_STREAMS; i++) {
		struct conv conv = conv_of(&s, i);
		struct cache_rows ring = ring_of(cache, i);

		k_conv_step(&conv, &ring, pos);
	}
	map_streams(&s);
	keys_and_decays(&s);
	k_linattn_step(&mix, cache, SEQ_STATE, pos);
	norm_out(&s);
	project_out(&s, a->y);
}

static void gla_fill(const struct mixer_args *a, void *cache, const int32_t *len)
{
	struct gla_act *act = a->act;
	struct gla_again *again = a->again;
	struct gla_rows s = GLA_ROWS(a, act, again);
	struct linattn mix = recurrence(&s);

	for (int i = 0; CONV && i < NR_STREAMS; i++) {
		struct cache_rows ring = ring_of(cache, i);

		k_cache_fill(&ring, s.stream[i], width_of[i], len, a->b, a->t);
	}
	k_linattn_state(&mix, cache, SEQ_STATE, len);
}

static struct cache_size gla_cache_size(unsigned int has)
{
	(void)has;
	return (struct cache_size){ .size = sizeof(struct gla_cache) };
}

/* ---- operations ------------------------------------------------------------------------------ */

static void linear_work(struct work *w, int n, bool backward)
{
	for (int i = 0; i < NR_STREAMS; i++)
		work_linear(w, n, width_of[i], C, backward);
	for (int h = 0; h < MAPS_Q; h++)
		work_linear(w, n, KEY, WIDTH_Q, backward);
	for (int h = 0; h < MAPS_V; h++)
		work_linear(w, n, VALUE, WIDTH_V, backward);
	if (RANK)
		work_linear(w, n, RANK, C, backward);
	if (GATED)
		work_linear(w, n, GATES, GATE_IN, backward);
	if (OUT_GATE)
		work_linear(w, n, OUT, C, backward);
	work_linear(w, n, C, OUT, backward);
}

static void gla_work(struct work *w, int b, int t, unsigned int has, bool backward)
{
	(void)has;
	linear_work(w, b * t, backward);
	linattn_work(w, b, t, H, KEY, VALUE, backward);
}

static void gla_work_step(struct work *w, int pos, unsigned int has)
{
	(void)pos, (void)has;
	linear_work(w, 1, false);
	work_pairs(w, H, 2.0 * KEY * VALUE);
}

/* The ops table, but for its name. */
#define GLA_OPS									\
	.role = ROLE_ATTN,							\
	.params = gla_params,							\
	.nr_params = ARRAY_SIZE(gla_params),					\
	.param_size = sizeof(struct gla_param),					\
	.act_size = sizeof(struct gla_act),					\
	.again_size = sizeof(struct gla_again),					\
	.tmp_size = sizeof(struct gla_tmp),					\
	.step_tmp_size = sizeof(struct gla_step_tmp),				\
	.cache = gla_cache_size,						\
	.work = gla_work,							\
	.work_step = gla_work_step,						\
	.forward = gla_forward,							\
	.again = sizeof(struct gla_again) ? gla_make_again : NULL,		\
	.backward = gla_backward,						\
	.step = gla_step,							\
	.fill = gla_fill

#endif
