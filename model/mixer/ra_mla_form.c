// SPDX-License-Identifier: MIT
/*
 * The two equal forms of ra_mla's attention, of which a build executes one:
 *
 *     expanded  K_h = k q_to_latent_h^T, V_h = v v_up_h: <Q_h, K_h>, D wide
 *     absorbed  q~_h = Q_h q_to_latent_h: <q~_h, k>, L wide; v_up_h after the sum
 *
 * K and V are two cheap products of k and v, so backward makes them again.
 */
#include <math.h>

#include "ra_mla_latent.h"

static act_t *key_heads(const struct mixer_args *a)
{
	struct ra_mla_act *act = a->act;
	struct ra_mla_tmp *tmp = a->tmp;

	return KEEP_K ? (act_t *)act->k_heads : (act_t *)tmp->k_heads;
}

/* The values v_h of all heads from v: expanded form. */
static struct heads expand_v(int rows)
{
	return (struct heads){ .n = NV, .rows = rows, .in = L, .out = D, .x_row = QKV,
			       .w_head = V_HEADS ? L * D : 0, .y_row = (long)NV * D,
			       .y_head = D };
}

/* Keys of the heads: all of q_to_latent is one matrix [NQ D][L]. */
static void expand_k(const struct mixer_args *a)
{
	const struct ra_mla_param *w = a->w;
	const struct ra_mla_act *act = a->act;

	k_gemm(&(struct gemm){
		.m = a->b * a->t, .n = NQ * D, .k = L, .tb = true, .a = act->qkv[0] + AT_K,
		.lda = QKV, .b = w->q_to_latent, .ldb = L, .c = key_heads(a), .ldc = NQ * D,
		.alpha = 1 });
}

void ra_mla_keys(const struct mixer_args *a)
{
	if (EXPANDED && !KEEP_K)
		expand_k(a);
}

void ra_mla_form_fwd(const struct mixer_args *a)
{
	const struct ra_mla_param *w = a->w;
	struct ra_mla_act *act = a->act;
	struct ra_mla_tmp *tmp = a->tmp;
	struct heads q = absorb_q(a->b * a->t), v = expand_v(a->b * a->t);

	if (ABSORBED) {
		heads_fwd(&q, (act_t *)act->q_latent, act->qkv[0], w->q_to_latent);
		return;
	}
	expand_k(a);
	heads_fwd(&v, (act_t *)tmp->v_heads, act->qkv[0] + AT_V, w->v_up);
}

struct attn ra_mla_attn(const struct mixer_args *a)
{
	struct ra_mla_act *act = a->act;
	struct ra_mla_tmp *tmp = a->tmp;
	struct attn at = {
		.b = a->b, .t = a->t, .heads = H, .group = 1, .dk = SCORE_WIDTH,
		.dv = SCORE_WIDTH, .o = act->o[0][0], .o_row = (long)H * SCORE_WIDTH,
		.o_head = SCORE_WIDTH, .lse = act->lse[0], .gamma = a->in[TAP_HEAD_GATE],
		.scale = 1 / sqrt(L), .ra_scale = CONFIG_RA_MLA_RA_ALPHA / sqrt(L),
		.ra_window = CONFIG_RA_MLA_RA_WINDOW };

	if (EXPANDED) {
		at.q = act->qkv[0];
		at.q_row = QKV;
		at.q_head = D;
		at.k = key_heads(a);
		at.k_row = NQ * D;
		at.k_head = Q_HEADS ? D : 0;
		at.v = (act_t *)tmp->v_heads;
		at.v_row = NV * D;
		at.v_head = V_HEADS ? D : 0;
	} else {
		at.q = (act_t *)act->q_latent;
		at.q_row = (long)H * L;
		at.q_head = L;
		at.k = act->qkv[0] + AT_K;
		at.v = act->qkv[0] + AT_V;
		at.k_row = at.v_row = QKV;
	}
	return at;
}

const act_t *ra_mla_out(const struct mixer_args *a)
{
	const struct ra_mla_param *w = a->w;
	struct ra_mla_act *act = a->act;
	struct ra_mla_tmp *tmp = a->tmp;
	struct heads v = absorb_v(a->b * a->t);

	if (EXPANDED)
		return act->o[0][0];
	heads_fwd(&v, (act_t *)tmp->o, act->o[0][0], w->v_up);
	return (act_t *)tmp->o;
}

/* ---- backward -------------------------------------------------------------- */

/* Keys and values are made again; their gradients go back to k and v. */
static void expanded_bwd(const struct mixer_args *a, const struct attn *at)
{
	const struct ra_mla_param *w = a->w;
	const struct ra_mla_act *act = a->act;
	struct ra_mla_tmp *tmp = a->tmp;
	struct heads v = expand_v(a->b * a->t);
	act_t *dqkv = tmp->bwd.dqkv[0], *dk = (act_t *)tmp->bwd.dk_heads;
	act_t *dv = (act_t *)tmp->bwd.dv_heads;
	int n = a->b * a->t;

	ra_mla_keys(a);
	heads_fwd(&v, (act_t *)tmp->v_heads, act->qkv[0] + AT_V, w->v_up);
	k_attn_bwd(at, dqkv, dk, dv, a->din[TAP_HEAD_GATE], tmp->bwd.d_o[0], tmp->bwd.delta[0]);
	k_gemm_grad(&(struct gemm){
		.m = NQ * D, .n = L, .k = n, .ta = true, .a = dk, .lda = NQ * D,
		.b = act->qkv[0] + AT_K, .ldb = QKV, .ldc = L, .alpha = 1,
		.c = GRAD(a->dw, struct ra_mla_param, q_to_latent) });
	k_gemm(&(struct gemm){
		.m = n, .n = L, .k = NQ * D, .a = dk, .lda = NQ * D, .b = w->q_to_latent,
		.ldb = L, .c = dqkv + AT_K, .ldc = QKV, .alpha = 1 });
	heads_dw(&v, GRAD(a->dw, struct ra_mla_param, v_up), dv, act->qkv[0] + AT_V);
	heads_dx(&v, dqkv + AT_V, dv, w->v_up);
}

static void absorbed_bwd(const struct mixer_args *a, const struct attn *at)
{
	const struct ra_mla_param *w = a->w;
	const struct ra_mla_act *act = a->act;
	struct ra_mla_tmp *tmp = a->tmp;
	struct heads q = absorb_q(a->b * a->t), v = absorb_v(a->b * a->t);
	act_t *dqkv = tmp->bwd.dqkv[0], *dw = (act_t *)tmp->bwd.dw;
	act_t *dq_latent = (act_t *)tmp->bwd.dq_latent;

	heads_dw(&v, GRAD(a->dw, struct ra_mla_param, v_up), tmp->bwd.d_o[0], act->o[0][0]);
	heads_dx(&v, dw, tmp->bwd.d_o[0], w->v_up);
	k_attn_bwd(at, dq_latent, dqkv + AT_K, dqkv + AT_V, a->din[TAP_HEAD_GATE], dw,
		   tmp->bwd.delta[0]);
	heads_dw(&q, GRAD(a->dw, struct ra_mla_param, q_to_latent), dq_latent, act->qkv[0]);
	heads_dx(&q, dqkv, dq_latent, w->q_to_latent);
}

void ra_mla_form_bwd(const struct mixer_args *a, const struct attn *at)
{
	if (EXPANDED)
		expanded_bwd(a, at);
	else
		absorbed_bwd(a, at);
}

/* ---- operations -------------------------------------------------------------- */

static void expanded_work(struct work *w, int n, bool backward)
{
	if (!backward || !KEEP_K)
		work_linear(w, n, NQ * D, L, false);
	work_product(w, n, D, L, NV);
	if (!backward)
		return;
	work_linear(w, n, NQ * D, L, true);
	work_product(w, L, D, n, NV);
	work_product(w, n, L, D, NV);
}

static void absorbed_work(struct work *w, int n, bool backward)
{
	work_product(w, n, D, L, H);
	if (!backward) {
		work_product(w, n, L, D, H);
		return;
	}
	work_product(w, L, D, n, H);
	work_product(w, n, L, D, H);
	work_product(w, D, L, n, H);
	work_product(w, n, D, L, H);
}

void ra_mla_form_work(struct work *w, int n, bool backward)
{
	if (EXPANDED)
		expanded_work(w, n, backward);
	else
		absorbed_work(w, n, backward);
}
