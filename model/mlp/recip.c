// SPDX-License-Identifier: MIT
/*
 * recip - GPT-2's MLP with mechanisms that talk back to attention
 *
 *     h0 = GELU(c_fc x)
 *     h = h0 + alpha_r A(latent)               3: recip_latent.c
 *     h += alpha_c (R^ h) cross_proj^T         2: recip_cross.c
 *     gate of the next attention's heads(h)    1: recip_gate.c
 *     y = c_proj h
 *
 * executed in the joined form of recip.h: one product forward, one for the gradient of
 * the matrix, one for that of h0. With every mechanism off it is mlp: same tensors, same
 * kernels, same bits. Documentation/gate.md, cross-token.md, latent-reciprocity.md.
 */
#include "recip.h"
#include "util.h"

static const struct param recip_params[] = {
	PARAM(struct recip_param, c_fc, "c_fc.weight", init_normal, 0, DECAY, F, C),
	PARAM(struct recip_param, c_fc_bias, "c_fc.bias", init_zero, 0, NO_DECAY, BIAS * F),
	PARAM(struct recip_param, c_proj, "c_proj.weight", init_residual, 0, DECAY, C, F),
	PARAM(struct recip_param, c_proj_bias, "c_proj.bias", init_zero, 0, NO_DECAY, BIAS * C),
	PARAM(struct recip_param, cross_proj, "cross_proj.weight", init_normal, 0, DECAY,
	      RECIP_CROSS * F, F),
	PARAM(struct recip_param, coupler, "coupler", init_normal, 0, DECAY, RECIP_TIED * F, A),
	PARAM(struct recip_param, attn_to_mlp, "attn_to_mlp.weight", init_normal, 0, DECAY,
	      RECIP_UNTIED * F, A),
	PARAM(struct recip_param, attn_scale, "attn_scale", init_one, 0, NO_DECAY,
	      RECIP_SCALAR * H),
	PARAM_IF(struct recip_param, gate_proj, "gate_proj.weight", init_normal, 0, DECAY,
		 TAP_BIT(HEAD_GATE), G, F),
	PARAM_IF(struct recip_param, gate_to_heads, "gate_to_heads.weight", init_normal, 0,
		 DECAY, TAP_BIT(HEAD_GATE), RECIP_GATE * H, G),
	PARAM_IF(struct recip_param, mlp_down, "mlp_down.weight", init_normal, 0, DECAY,
		 TAP_BIT(LATENT_MIX), N, F),
	PARAM_IF(struct recip_param, mlp_to_attn, "mlp_to_attn.weight", init_normal, 0, DECAY,
		 TAP_BIT(LATENT_MIX), RECIP_UNTIED * A, N),
	PARAM_IF(struct recip_param, mlp_scale, "mlp_scale", init_one, 0, NO_DECAY,
		 TAP_BIT(LATENT_MIX), RECIP_SCALAR * H),
};

/* ---- forward and backward ------------------------------------------------------- */

/* The hidden layer of the direct form, in place. */
static struct hidden hidden_call(const struct mixer_args *a, act_t *h, act_t *c)
{
	struct recip_act *act = a->act;
	struct recip_tmp *tmp = a->tmp;

	return (struct hidden){
		.a = a, .n = a->b * a->t, .h = h, .u = (act_t *)act->u, .c = c,
		.map = (param_t *)tmp->map, .mixed = (act_t *)act->mixed };
}

static void recip_forward(const struct mixer_args *a)
{
	const struct recip_param *w = a->w;
	struct recip_act *act = a->act;
	struct hidden s = hidden_call(a, joined_x(a), a->out[TAP_LATENT_MIX]);

	k_gemm(&(struct gemm){
		.m = s.n, .n = F, .k = C, .tb = true, .a = a->x, .lda = C, .b = w->c_fc,
		.ldb = C, .c = s.h, .ldc = COLS, .alpha = 1, .ep = GEMM_BIAS_GELU,
		.bias = WITH_BIAS(w->c_fc_bias), .aux = act->pre[0], .ldaux = F });
	if (RECIP_DIRECT)
		for_each_up(i)
			CALL(i, hidden, &s);
	joined_fwd(a);
}

static void recip_make_again(const struct mixer_args *a)
{
	const struct recip_act *act = a->act;
	struct recip_tmp *tmp = a->tmp;
	act_t *h = tmp->bwd.dh[0];
	int n = a->b * a->t;

	k_gelu_fwd(h, act->pre[0], (size_t)n * F);
	k_axpby(joined_x(a), COLS, h, F, n, F, 1, 0);
	joined_beside(a);
}

static void recip_backward(const struct mixer_args *a)
{
	const struct recip_param *w = a->w;
	struct recip_act *act = a->act;
	struct recip_tmp *tmp = a->tmp;
	struct hidden s = hidden_call(a, joined_x(a), NULL);
	act_t *dh = tmp->bwd.dh[0];

	s.dh = dh;
	joined_bwd(a, !RECIP_DIRECT);
	if (RECIP_DIRECT) {
		for_each_down(i)
			CALL(i, hidden_bwd, &s);
		k_gelu_bwd(dh, act->pre[0], dh, (size_t)s.n * F);
	}
	linear_dw(RECIP_GRAD(a, c_fc), RECIP_GRAD(a, c_fc_bias), dh, a->x, s.n, F, C, 1, 0);
	linear_dx(a->dx, dh, w->c_fc, s.n, F, C, 1, 0);
}

/* ---- decode ------------------------------------------------------------------------ */

static struct cache_size recip_cache_size(unsigned int has)
{
	if (RECIP_GATE && (has & TAP_BIT(HEAD_GATE)))
		return (struct cache_size){ sizeof(struct recip_cache),
					    sizeof(((struct recip_cache *)0)->past) / T_MAX };
	return (struct cache_size){ sizeof(struct recip_cache_ungated),
				    sizeof(((struct recip_cache_ungated *)0)->past) / T_MAX };
}

static const char leak[] = "CONFIG_RA_MLA_MLP_GATE_POOL=\"sequence\" leaks the future, so this model cannot decode; train with \"causal\" or \"token\"";

/* One token is too few to build the matrix for: the equations as they stand. */
static void recip_step(const struct mixer_args *a, void *cache, const int32_t *pos)
{
	const struct recip_param *w = a->w;
	struct recip_step_tmp *tmp = a->tmp;
	struct hidden s = {
		.a = a, .n = a->b, .h = tmp->h[0], .u = (act_t *)tmp->u,
		.c = a->out[TAP_LATENT_MIX], .map = (param_t *)tmp->map,
		.mixed = (act_t *)tmp->mixed, .cache = cache, .pos = pos };

	if (RECIP_SEQUENCE)
		die("%s", leak);
	linear_gelu_fwd(tmp->h[0], tmp->pre[0], a->x, w->c_fc, w->c_fc_bias, s.n, F, C);
	for_each_up(i)
		CALL(i, hidden, &s);
	linear_bias_fwd(a->y, tmp->h, w->c_proj, w->c_proj_bias, s.n, C, F);
	for_each_down(i)
		CALL(i, outputs, &s);
	for_each_up(i)
		CALL(i, step, &s);
}

static void recip_fill(const struct mixer_args *a, void *cache, const int32_t *len)
{
	struct joined j = joined_call(a, a->y);

	for_each_down(i)
		CALL(i, fill_cache, &j, recip_rows_above(a, i), cache, len);
}

/* ---- metrics ------------------------------------------------------------------------ */

act_t *recip_hidden(const struct mixer_args *a, const struct recip_part *above)
{
	const struct recip_act *act = a->act;
	struct recip_tmp *tmp = a->tmp;
	struct hidden s = hidden_call(a, (act_t *)tmp->log.h, NULL);

	k_gelu_fwd(s.h, act->pre[0], (size_t)s.n * F);
	for_each_up(i) {
		if (recip_parts[i] == above)
			break;
		CALL(i, hidden, &s);
	}
	return s.h;
}

/* Needs RA_MLA_LOG_METRICS for its buffers. */
static int recip_metrics(const struct mixer_args *a, struct metric *out)
{
	int n = 0;

	for_each_down(i)
		if (recip_parts[i])
			n += recip_parts[i]->metrics(a, out + n);
	return n;
}

/* ---- operations -------------------------------------------------------------------- */

/* As in a layer that gets every tap it reads. */
static void recip_work(struct work *w, int b, int t, unsigned int has, bool backward)
{
	struct mixer_args a = { .b = b, .t = t, .has = has };
	struct joined j;

	for (int tap = 0; tap < NR_TAPS; tap++)
		a.in[tap] = &a;
	j = joined_shape(&a);
	work_linear(w, j.n, F, C, backward);
	if (backward) {
		work_product(w, j.n, F, j.rows, 1);
		work_product(w, j.rows, F, j.n, 1);
	} else {
		work_product(w, j.n, j.rows, j.cols, 1);
	}
	for_each_down(i)
		CALL(i, work, w, &j, recip_rows_above(&a, i), backward);
}

/* The equations as recip_step() executes them. */
static void recip_work_step(struct work *w, int pos, unsigned int has)
{
	struct mixer_args a = { .b = 1, .t = 1, .has = has };

	work_linear(w, 1, F, C, false);
	work_linear(w, 1, C, F, false);
	for_each_down(i)
		CALL(i, work_step, w, &a, pos);
}

static const struct mixer recip = {
	.name = "recip",
	.role = ROLE_MLP,
	.params = recip_params,
	.nr_params = ARRAY_SIZE(recip_params),
	.param_size = sizeof(struct recip_param),
	.act_size = sizeof(struct recip_act),
	.again_size = RECIP_DIRECT ? 0 : sizeof(struct recip_again),
	.tmp_size = sizeof(struct recip_tmp),
	.step_tmp_size = sizeof(struct recip_step_tmp),
	.taps_read = recip_TAPS_READ,
	.taps_written = recip_TAPS_WRITTEN,
	.taps_passing = RECIP_DIRECT ? 0 : RA_MLA_PASSING,
	.form = RECIP_DIRECT ? "direct" : RECIP_OWN ? "joined" : NULL,
	.leaks = RECIP_SEQUENCE ? leak : NULL,
	.cache = recip_cache_size,
	.work = recip_work,
	.work_step = recip_work_step,
	.forward = recip_forward,
	.again = RECIP_DIRECT ? NULL : recip_make_again,
	.backward = recip_backward,
	.step = recip_step,
	.fill = recip_fill,
	.metrics = IS_ENABLED(CONFIG_RA_MLA_LOG_METRICS) ? recip_metrics : NULL,
};
MIXER_REGISTER(recip);
