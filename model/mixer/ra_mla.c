// SPDX-License-Identifier: MIT
/*
 * ra_mla - latent attention with a reciprocal term
 *
 * Keys and values are L numbers per position, shared by all heads:
 *
 *     k = x k_down^T (+ alpha_r c),  v = x v_down^T,  Q = x q_proj^T
 *     s_{t,u} = <Q_t q_to_latent_h, k_u> / sqrt(L)
 *               (+ alpha_ra / sqrt(L) <Q_u q_to_latent_h, k_t>, t - u <= W)
 *     y = concat_h(gamma_h softmax(s) v v_up_h) out_proj^T
 *
 * Training executes one of two equal forms, ra_mla_form.c; decode, ra_mla_step.c, never
 * expands what is cached.
 *
 * Latent keys and values, absorbed projections: DeepSeek-V2, Liu et al. 2024,
 * arXiv 2405.04434 (there with a rotary part beside the latent, which this one does
 * not have). Reciprocal term and taps: Documentation/ra-mla.md.
 */
#include <math.h>

#include "arch.h"
#include "util.h"
#include "ra_mla_latent.h"

static const double alpha_r = CONFIG_RA_MLA_MLP_RECIP_ALPHA;

static const struct param ra_mla_params[] = {
	PARAM(struct ra_mla_param, q_proj, "q_proj.weight", init_normal, 0, DECAY, C, C),
	PARAM(struct ra_mla_param, k_down, "k_down.weight", init_normal, 0, DECAY, L, C),
	PARAM(struct ra_mla_param, v_down, "v_down.weight", init_normal, 0, DECAY, L, C),
	PARAM(struct ra_mla_param, q_to_latent, "q_to_latent", init_fanin, D, DECAY,
	      Q_HEADS, D, L),
	PARAM(struct ra_mla_param, q_to_latent_all, "q_to_latent", init_fanin, D, DECAY,
	      Q_SHARED, L),
	PARAM(struct ra_mla_param, v_up, "v_up", init_fanin, L, DECAY, V_HEADS, L, D),
	PARAM(struct ra_mla_param, v_up_all, "v_up", init_fanin, L, DECAY, V_SHARED, D),
	PARAM(struct ra_mla_param, out_proj, "out_proj.weight", init_residual, 0, DECAY, C, C),
};

/* ---- forward ------------------------------------------------------------- */

/* TAP_ROUTE: what recomputes gamma P, and the selection made from it. */
static void publish_route(const struct mixer_args *a, const struct attn *at)
{
	struct ra_mla_act *act = a->act;
	struct ra_mla_tmp *tmp = a->tmp;
	struct route *r = a->host;

	*r = (struct route){
		ROUTE_RULE, .a = *at,
		.index = ROUTE_K ? (int32_t *)act->index : NULL,
		.weight = ROUTE_K ? (acc_t *)act->weight : NULL,
		.thr = ROUTE_DENSE ? (acc_t *)act->thr : NULL,
		.inv = ROUTE_DENSE ? (acc_t *)act->inv : NULL };
	k_route_build(r, tmp->scratch);
	a->publish[TAP_ROUTE] = r;
}

static void ra_mla_forward(const struct mixer_args *a)
{
	const struct ra_mla_param *w = a->w;
	struct ra_mla_act *act = a->act;
	struct attn at = ra_mla_attn(a);
	act_t *k = act->qkv[0] + AT_K;
	int n = a->b * a->t;

	proj_fwd(act->qkv[0], a->x, w, n);
	if (LATENT && a->in[TAP_LATENT_MIX])
		k_axpby(k, QKV, a->in[TAP_LATENT_MIX], L, n, L, alpha_r, 1);
	if (LATENT && (a->has & TAP_BIT(LATENT)))
		k_axpby(a->out[TAP_LATENT], L, k, QKV, n, L, 1, 0);
	ra_mla_form_fwd(a);
	k_attn_fwd(&at);
	linear_fwd(a->y, ra_mla_out(a), w->out_proj, n, C, C, 1, 0);
	if (ROUTE_ROWS && (a->has & TAP_BIT(ROUTE)))
		publish_route(a, &at);
}

/* tmp as forward left it holds nothing that is needed. */
static void ra_mla_fill(const struct mixer_args *a, void *cache, const int32_t *len)
{
	const struct ra_mla_param *w = a->w;
	const struct ra_mla_act *act = a->act;
	struct ra_mla_tmp *tmp = a->tmp;
	struct heads q = absorb_q(a->b * a->t);

	if (EXPANDED && RA_BAND)
		heads_fwd(&q, (act_t *)tmp->ring, act->qkv[0], w->q_to_latent);
	ra_mla_cache_fill(a, cache, len, act->qkv[0],
			  EXPANDED ? (const act_t *)tmp->ring : (const act_t *)act->q_latent);
}

/* ---- backward ------------------------------------------------------------ */

static void ra_mla_backward(const struct mixer_args *a)
{
	const struct ra_mla_param *w = a->w;
	struct ra_mla_tmp *tmp = a->tmp;
	struct attn at = ra_mla_attn(a);
	act_t *dk = tmp->bwd.dqkv[0] + AT_K;
	int n = a->b * a->t;

	linear_dw(GRAD(a->dw, struct ra_mla_param, out_proj), NULL, a->dy, ra_mla_out(a), n, C, C,
		  1, 0);
	linear_dx(tmp->bwd.d_o[0], a->dy, w->out_proj, n, C, C, 1, 0);
	ra_mla_form_bwd(a, &at);
	if (LATENT && a->dout[TAP_LATENT])
		k_axpby(dk, QKV, a->dout[TAP_LATENT], L, n, L, 1, 1);
	if (LATENT && a->din[TAP_LATENT_MIX])
		k_axpby(a->din[TAP_LATENT_MIX], L, dk, QKV, n, L, alpha_r, 0);
	proj_bwd(a->dx, a->dw, tmp->bwd.dqkv[0], a->x, w, n);
}

/* ---- metrics --------------------------------------------------------------- */

/* Mean entropy of the heads' rows; what the MLP's mix is of the keys it went into. */
static int ra_mla_metrics(const struct mixer_args *a, struct metric *out)
{
	struct ra_mla_tmp *tmp = a->tmp;
	const struct ra_mla_act *act = a->act;
	struct attn at = ra_mla_attn(a);
	const act_t *mix = a->in[TAP_LATENT_MIX];
	int n = a->b * a->t;
	struct stats s[3];

	ra_mla_keys(a);
	k_attn_entropy(&at, tmp->log.entropy[0]);
	k_axpby(tmp->log.k[0], L, act->qkv[0] + AT_K, QKV, n, L, 1, 0);
	k_stats_acc(&tmp->log.stats[0], tmp->log.entropy[0], (size_t)n * H);
	k_stats(&tmp->log.stats[1], tmp->log.k[0], (size_t)n * L);
	k_stats(&tmp->log.stats[2], mix ? mix : tmp->log.k[0], (size_t)n * L);
	arch_get(s, tmp->log.stats, sizeof(s));
	out[0] = (struct metric){ "attn_entropy", s[0].mean };
	out[1] = (struct metric){ "key_mix_ratio", alpha_r * s[2].rms / s[1].rms };
	return mix ? 2 : 1;
}

/* ---- operations ---------------------------------------------------------- */

/* Backward's attention: the scores again, dq and dk; dP and dv. Routing: the scores again. */
static void ra_mla_work(struct work *w, int b, int t, unsigned int has, bool backward)
{
	int n = b * t;

	for (int i = 0; i < NR_PROJ; i++)
		work_linear(w, n, proj_at(i).width, C, backward);
	work_linear(w, n, C, C, backward);
	ra_mla_form_work(w, n, backward);
	work_scores(w, b, t, backward ? 3 : 1);
	work_pairs(w, causal_pairs(b, t, t), (backward ? 2.0 : 1.0) * H * SCORE_WIDTH);
	if (!backward && ROUTE_ROWS && (has & TAP_BIT(ROUTE)))
		work_scores(w, b, t, 1);
}

/* Absorbed in every build. */
static void ra_mla_work_step(struct work *w, int pos, unsigned int has)
{
	(void)has;
	for (int i = 0; i < NR_PROJ; i++)
		work_linear(w, 1, proj_at(i).width, C, false);
	work_product(w, 1, L, D, H);
	work_product(w, 1, D, L, H);
	work_linear(w, 1, C, C, false);
	work_pairs(w, pos + 1, 2.0 * H * L);
	work_pairs(w, MIN(pos + 1, (int)RA_BAND), (double)H * L);
}

static const struct mixer ra_mla = {
	.name = "ra_mla",
	.role = ROLE_ATTN,
	.params = ra_mla_params,
	.nr_params = ARRAY_SIZE(ra_mla_params),
	.param_size = sizeof(struct ra_mla_param),
	.act_size = sizeof(struct ra_mla_act),
	.host_size = sizeof(struct route),
	.tmp_size = sizeof(struct ra_mla_tmp),
	.step_tmp_size = sizeof(struct ra_mla_step_tmp),
	.taps_read = ra_mla_TAPS_READ,
	.taps_written = ra_mla_TAPS_WRITTEN,
	.taps_passing = RA_MLA_PASSING,
	.form = EXPANDED ? "expanded" : "absorbed",
	.cache = ra_mla_cache_size,
	.work = ra_mla_work,
	.work_step = ra_mla_work_step,
	.forward = ra_mla_forward,
	.backward = ra_mla_backward,
	.step = ra_mla_step,
	.fill = ra_mla_fill,
	.metrics = IS_ENABLED(CONFIG_RA_MLA_LOG_METRICS) ? ra_mla_metrics : NULL,
};
MIXER_REGISTER(ra_mla);
