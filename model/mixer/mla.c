// SPDX-License-Identifier: MIT
/*
 * mla - multi-head latent attention
 *
 *     c = N(x kv_a_proj^T)                    [R], or two halves for keys and values
 *     q_h from x, from a latent of its own, or from c
 *     k_h = [W_k,h c ; R(x k_rope_proj^T)],  v_h = W_v,h c        rows of kv_b_proj
 *     y = concat_h(softmax([q_n ; R(q_r)]_h . k_h / sqrt(DN + DR)) v_h) o_proj^T
 *
 * With a splice (mla_splice.c) what a bottleneck makes of c takes its place. Training and
 * prompts expand keys and values to heads; decode (mla_step.c) stays among the latents.
 *
 * DeepSeek-V2, Liu et al. 2024, arXiv 2405.04434. There kv_a_proj and k_rope_proj are one
 * matrix, the rotated pairs are neighbours, and the context is stretched by YaRN.
 */
#include <math.h>

#include "mla.h"
#include "util.h"

#define WEIGHT(field, leaf, init, rows, cols) \
	PARAM(struct mla_param, field, leaf ".weight", init, 0, DECAY, rows, cols), \
	PARAM(struct mla_param, field##_bias, leaf ".bias", init_zero, 0, NO_DECAY, BIAS * (rows))
#define GAIN(field, n) \
	PARAM(struct mla_param, field, #field ".weight", init_one, 0, WIDE, n)

static const struct param mla_params[] = {
	WEIGHT(q_proj, "q_proj", init_normal, DIRECT * H * DK, C),
	WEIGHT(q_a_proj, "q_a_proj", init_normal, RQ, C),
	GAIN(q_a_layernorm, NORM * RQ),
	WEIGHT(q_b_proj, "q_b_proj", init_normal, !DIRECT * H * DQ, QIN),
	WEIGHT(q_rope_proj, "q_rope_proj", init_normal, FROM_X * H * DR, C),
	WEIGHT(k_rope_proj, "k_rope_proj", init_normal, DR, C),
	WEIGHT(kv_a_proj, "kv_a_proj", init_normal, HALVES * R, C),
	GAIN(kv_a_layernorm, NORM * HALVES * R),
	WEIGHT(kv_b_proj, "kv_b_proj", init_normal, H * KV, R),
	WEIGHT(o_proj, "o_proj", init_residual, C, H * DV),
	PARAM_IF(struct mla_param, scale, "kv_splice.scale",
		 SPLICE ? init_splice_scale : NULL, 0, WIDE, SPLICED, SPLICE * HALVES * R),
	PARAM_IF(struct mla_param, shift, "kv_splice.shift", init_zero, 0, WIDE, SPLICED,
		 SPLICE * HALVES * R),
	PARAM_IF(struct mla_param, compress, "kv_splice.compress",
		 SPLICE ? init_compress : NULL, 0, DECAY | INIT_WHOLE, SPLICED, HALVES * RC, R),
	PARAM_IF(struct mla_param, expand, "kv_splice.expand",
		 SPLICE ? init_expand : NULL, 0, DECAY | INIT_WHOLE, SPLICED,
		 !TIED_SPLICE * (RC > 0) * HALVES * R, RC),
};

/* Layers from @layer on that have mla. */
static int layers_left(int layer)
{
	int n = 0;

	for (; layer < NL; layer++)
		n += mixer_times("mla", layer) > 0;
	return n;
}

unsigned int mla_options(int layer)
{
	int last = CONFIG_MLA_KVSPLICE_LAYERS;

	return SPLICE && (!last || layers_left(layer) <= last) ? SPLICED : 0;
}

/* ---- keys and values of all heads ------------------------------------------------ */

static void expand_fwd(const struct mla_rows *s, act_t *kv)
{
	for (int i = 0; i < PARTS; i++) {
		struct mla_part p = mla_part(i);
		struct gemm g = mla_expand_part(s->w, p, kv);

		g.m = s->n;
		g.a = mla_latent(s, p.half);
		k_gemm(&g);
	}
}

/* Heads add to the gradient of a half in their order. */
static void expand_bwd(const struct mixer_args *a, const struct mla_rows *s)
{
	const struct mla_param *w = a->w;
	struct mla_tmp *tmp = a->tmp;

	for (int i = 0; i < PARTS; i++) {
		struct mla_part p = mla_part(i);
		const act_t *d = tmp->dkv[0][0] + p.first;
		grad_t *db = GRAD(a->dw, struct mla_param, kv_b_proj_bias) + p.first;

		k_gemm_grad(&(struct gemm){
			.m = p.rows, .n = R, .k = s->n, .ta = true, .a = d, .lda = (long)H * KV,
			.b = mla_latent(s, p.half), .ldb = R, .ldc = R, .alpha = 1,
			.c = GRAD(a->dw, struct mla_param, kv_b_proj) + (size_t)p.first * R,
			.db = WITH_BIAS(db) });
		k_gemm(&(struct gemm){
			.m = s->n, .n = R, .k = p.rows, .a = d, .lda = (long)H * KV,
			.b = w->kv_b_proj[p.first], .ldb = R, .c = tmp->dlatent[p.half][0],
			.ldc = R, .alpha = 1, .beta = i >= HALVES });
	}
}

/* Each head's key, the common one behind it. */
static void mla_keys(const struct mixer_args *a)
{
	struct mla_act *act = a->act;
	struct mla_again *again = a->again;
	act_t *keys = (act_t *)again->keys;
	int n = a->b * a->t;

	k_axpby(keys, DK, act->kv[0][0], KV, n * H, DN, 1, 0);
	k_heads_spread(keys + DN, (long)H * DK, DK, (act_t *)act->kr, DR, n, H, DR);
}

static struct attn mla_attn(const struct mixer_args *a)
{
	struct mla_act *act = a->act;
	struct mla_again *again = a->again;
	int key = DR ? DK : KV;

	return (struct attn){
		.b = a->b, .t = a->t, .heads = H, .group = 1, .dk = DK, .dv = DV,
		.q = act->q[0][0], .q_row = (long)H * DK, .q_head = DK,
		.k = DR ? (act_t *)again->keys : act->kv[0][0], .k_row = (long)H * key, .k_head = key,
		.v = act->kv[0][0] + DN, .v_row = (long)H * KV, .v_head = KV,
		.o = act->o[0], .o_row = (long)H * DV, .o_head = DV,
		.lse = act->lse[0], .scale = 1 / sqrt(DK),
	};
}

/* ---- forward and backward -------------------------------------------------------- */

static void mla_forward(const struct mixer_args *a)
{
	const struct mla_param *w = a->w;
	struct mla_act *act = a->act;
	struct mla_tmp *tmp = a->tmp;
	int n = a->b * a->t;
	struct mla_rows s = MLA_ROWS(a, act, tmp, n);
	struct attn at = mla_attn(a);

	mla_project(&s);
	expand_fwd(&s, act->kv[0][0]);
	mla_rotate(n, a->t, NULL, false, (struct rope_heads[]){ mla_query_heads(s.q),
			mla_key_heads(s.kr, act->kv[0][0]) }, 2);
	if (DR)
		mla_keys(a);
	k_attn_fwd(&at);
	linear_bias_fwd(a->y, act->o, w->o_proj, w->o_proj_bias, n, C, H * DV);
	if (SPLICE && a->aux && (a->has & SPLICED))
		mla_splice_aux(a, &s);
}

/* The gradient of each head's key apart: the expanded one, and the sum of the common one. */
static void keys_bwd(const struct mla_tmp *tmp, act_t *dkr, act_t *dkv, int n)
{
	const act_t *dkeys = (const act_t *)tmp->dkeys;

	k_axpby(dkv, KV, dkeys, DK, n * H, DN, 1, 0);
	k_heads_sum(dkr, DR, dkeys + DN, (long)H * DK, DK, n, H, DR);
}

static void mla_backward(const struct mixer_args *a)
{
	const struct mla_param *w = a->w;
	struct mla_act *act = a->act;
	struct mla_tmp *tmp = a->tmp;
	int n = a->b * a->t;
	struct mla_rows s = MLA_ROWS(a, act, tmp, n);
	struct attn at = mla_attn(a);
	act_t *dq = tmp->dq[0][0], *dkv = tmp->dkv[0][0], *dkr = (act_t *)tmp->dkr;

	linear_dw(GRAD(a->dw, struct mla_param, o_proj), GRAD(a->dw, struct mla_param, o_proj_bias),
		  a->dy, act->o, n, C, H * DV, 1, 0);
	linear_dx(tmp->d_o[0], a->dy, w->o_proj, n, C, H * DV, 1, 0);
	k_attn_bwd(&at, dq, DR ? (act_t *)tmp->dkeys : dkv, dkv + DN, NULL, tmp->d_o[0],
		   tmp->delta[0]);
	if (DR)
		keys_bwd(tmp, dkr, dkv, n);
	mla_rotate(n, a->t, NULL, true, (struct rope_heads[]){ mla_query_heads(dq),
			mla_key_heads(dkr, dkv) }, 2);
	expand_bwd(a, &s);
	mla_project_bwd(a, &s);
}

/* Pairs: scores and values; backward, which computes the scores again, three and two. */
static void mla_work(struct work *w, int b, int t, unsigned int has, bool backward)
{
	int n = b * t;

	mla_project_work(w, n, has, backward, true);
	for (int i = 0; i < PARTS; i++)
		work_linear(w, n, mla_part(i).rows, R, backward);
	work_linear(w, n, C, H * DV, backward);
	work_pairs(w, causal_pairs(b, t, t), H * (backward ? 3.0 * DK + 2.0 * DV : DK + DV));
}

static const struct mixer mla = {
	.name = "mla",
	.role = ROLE_ATTN,
	.params = mla_params,
	.nr_params = ARRAY_SIZE(mla_params),
	.param_size = sizeof(struct mla_param),
	.act_size = sizeof(struct mla_act),
	.again_size = DR ? sizeof(struct mla_again) : 0,
	.tmp_size = sizeof(struct mla_tmp),
	.step_tmp_size = sizeof(struct mla_step_tmp),
	.taps_read = mla_TAPS_READ,
	.taps_written = mla_TAPS_WRITTEN,
	.form = FULL ? "expanded, also in each step of decode" : "expanded, decode absorbed",
	.aux = SPLICE && CONFIG_MLA_KVSPLICE_RECON_NONZERO,
	.options = mla_options,
	.cache = mla_cache_size,
	.work = mla_work,
	.work_step = mla_work_step,
	.forward = mla_forward,
	.again = DR ? mla_keys : NULL,
	.backward = mla_backward,
	.step = mla_step,
	.fill = mla_fill,
	.metrics = SPLICE ? mla_splice_metrics : NULL,
};
MIXER_REGISTER(mla);
