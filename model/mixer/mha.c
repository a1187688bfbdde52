// SPDX-License-Identifier: MIT
/*
 * Multi-head attention of GPT-2 (Radford et al. 2019; Vaswani et al. 2017, arXiv
 * 1706.03762): one projection to queries, keys and values, causal softmax with
 * scale 1/sqrt(D), output projection. Several query heads may share a key and a value
 * head (Ainslie et al. 2023, arXiv 2305.13245): c_attn's rows are H query heads, then
 * KV key heads, then KV value heads. Queries and keys may be rotated by their position
 * (kernels_rope.h), before they are cached.
 */
#include <math.h>

#include "kernels_rope.h"
#include "mixer.h"
#include "util.h"
#include "../linear.h"

enum {
	KV = CONFIG_KV_HEADS ? CONFIG_KV_HEADS : H,
	KV_WIDTH = KV * D,
	QKV = C + 2 * KV_WIDTH,
	ROPE = IS_ENABLED(CONFIG_MHA_ROPE),
};

static_assert(H % KV == 0, "CONFIG_KV_HEADS must divide CONFIG_N_HEAD");

struct mha_param {
	TENSOR param_t c_attn[QKV][C];
	TENSOR param_t c_attn_bias[BIAS * QKV];
	TENSOR param_t c_proj[C][C];
	TENSOR param_t c_proj_bias[BIAS * C];
};

struct mha_act {
	TENSOR act_t qkv[BT][QKV];
	TENSOR act_t o[BT][C];
	TENSOR acc_t lse[BT][H];
};

struct mha_tmp {
	TENSOR act_t dqkv[BT][QKV];
	TENSOR act_t d_o[BT][C];
	TENSOR acc_t delta[BT][H + ATTN_SUMS(C + 2 * KV_WIDTH)];
};

struct mha_cache {
	TENSOR act_t kv[T_MAX][2 * KV_WIDTH];
};

struct mha_step_tmp {
	TENSOR act_t qkv[B_MAX][QKV];
	TENSOR act_t o[B_MAX][C];
};

static const struct param mha_params[] = {
	PARAM(struct mha_param, c_attn, "c_attn.weight", init_normal, 0, DECAY, QKV, C),
	PARAM(struct mha_param, c_attn_bias, "c_attn.bias", init_zero, 0, NO_DECAY, BIAS * QKV),
	PARAM(struct mha_param, c_proj, "c_proj.weight", init_residual, 0, DECAY, C, C),
	PARAM(struct mha_param, c_proj_bias, "c_proj.bias", init_zero, 0, NO_DECAY, BIAS * C),
};

/* Queries and keys, which stand side by side, of n rows; @pos as in struct rope. */
static void mha_rope(act_t *qkv, int n, int t, const int32_t *pos, bool back)
{
	const struct rope_heads heads = { .x = qkv, .row = QKV, .head = D, .heads = H + KV };

	if (ROPE)
		k_rope(&(struct rope){ .n = n, .t = t, .pos = pos, .width = D,
				       .theta = CONFIG_ROPE_THETA, .back = back }, &heads, 1);
}

static struct attn mha_attn(const struct mixer_args *a)
{
	struct mha_act *act = a->act;
	act_t *q = act->qkv[0];

	return (struct attn){
		.b = a->b, .t = a->t, .heads = H, .group = H / KV, .dk = D, .dv = D,
		.q = q, .q_row = QKV, .q_head = D,
		.k = q + C, .k_row = QKV, .k_head = D,
		.v = q + C + KV_WIDTH, .v_row = QKV, .v_head = D,
		.o = act->o[0], .o_row = C, .o_head = D,
		.lse = act->lse[0], .scale = 1 / sqrt(D),
	};
}

static void mha_forward(const struct mixer_args *a)
{
	const struct mha_param *w = a->w;
	struct mha_act *act = a->act;
	struct attn at = mha_attn(a);
	int n = a->b * a->t;

	linear_bias_fwd(act->qkv[0], a->x, w->c_attn, w->c_attn_bias, n, QKV, C);
	mha_rope(act->qkv[0], n, a->t, NULL, false);
	k_attn_fwd(&at);
	linear_bias_fwd(a->y, act->o, w->c_proj, w->c_proj_bias, n, C, C);
}

static void mha_backward(const struct mixer_args *a)
{
	const struct mha_param *w = a->w;
	struct mha_act *act = a->act;
	struct mha_tmp *tmp = a->tmp;
	struct attn at = mha_attn(a);
	act_t *dq = tmp->dqkv[0];
	int n = a->b * a->t;

	linear_dw(GRAD(a->dw, struct mha_param, c_proj), GRAD(a->dw, struct mha_param, c_proj_bias),
		  a->dy, act->o, n, C, C, 1, 0);
	linear_dx(tmp->d_o[0], a->dy, w->c_proj, n, C, C, 1, 0);
	k_attn_bwd(&at, dq, dq + C, dq + C + KV_WIDTH, NULL, tmp->d_o[0], tmp->delta[0]);
	mha_rope(dq, n, a->t, NULL, true);
	linear_dw(GRAD(a->dw, struct mha_param, c_attn), GRAD(a->dw, struct mha_param, c_attn_bias),
		  dq, a->x, n, QKV, C, 1, 0);
	linear_dx(a->dx, dq, w->c_attn, n, QKV, C, 1, 0);
}

/* ---- decode -------------------------------------------------------------- */

enum { CACHE_STRIDE = sizeof(struct mha_cache) / sizeof(act_t) };

/* A row is the key and the value of one position, side by side as the product leaves them. */
static struct cache_rows mha_rows(struct mha_cache *c)
{
	return (struct cache_rows){ .base = c->kv[0], .seq = CACHE_STRIDE, .row = 2 * KV_WIDTH,
				    .width = 2 * KV_WIDTH };
}

static void mha_step(const struct mixer_args *a, void *cache, const int32_t *pos)
{
	const struct mha_param *w = a->w;
	struct mha_cache *c = cache;
	struct mha_step_tmp *tmp = a->tmp;
	struct cache_rows rows = mha_rows(c);

	linear_bias_fwd(tmp->qkv[0], a->x, w->c_attn, w->c_attn_bias, a->b, QKV, C);
	mha_rope(tmp->qkv[0], a->b, 1, pos, false);
	k_cache_put(&rows, tmp->qkv[0] + C, QKV, pos, a->b);
	k_attn_step(&(struct attn_step){
		.b = a->b, .heads = H, .group = H / KV, .dk = D, .dv = D, .t_max = T_MAX,
		.pos = pos, .q = tmp->qkv[0], .q_row = QKV,
		.k = c->kv[0], .k_row = 2 * KV_WIDTH, .k_head = D,
		.v = c->kv[0] + KV_WIDTH, .v_row = 2 * KV_WIDTH, .v_head = D,
		.cache_stride = CACHE_STRIDE, .o = tmp->o[0], .scale = 1 / sqrt(D) });
	linear_bias_fwd(a->y, tmp->o, w->c_proj, w->c_proj_bias, a->b, C, C);
}

static void mha_fill(const struct mixer_args *a, void *cache, const int32_t *len)
{
	const struct mha_act *act = a->act;
	struct cache_rows rows = mha_rows(cache);

	k_cache_fill(&rows, act->qkv[0] + C, QKV, len, a->b, a->t);
}

static struct cache_size mha_cache_size(unsigned int has)
{
	(void)has;
	return (struct cache_size){ sizeof(struct mha_cache), sizeof(act_t) * 2 * KV_WIDTH };
}

/*
 * Visible pairs of width D: scores and values; backward, which computes the scores
 * again, five products for the two.
 */
static void mha_work(struct work *w, int b, int t, unsigned int has, bool backward)
{
	(void)has;
	work_linear(w, b * t, QKV, C, backward);
	work_linear(w, b * t, C, C, backward);
	work_pairs(w, causal_pairs(b, t, t), (backward ? 5 : 2) * C);
}

static const struct mixer mha = {
	.name = "mha",
	.role = ROLE_ATTN,
	.params = mha_params,
	.nr_params = ARRAY_SIZE(mha_params),
	.param_size = sizeof(struct mha_param),
	.act_size = sizeof(struct mha_act),
	.tmp_size = sizeof(struct mha_tmp),
	.step_tmp_size = sizeof(struct mha_step_tmp),
	.taps_read = mha_TAPS_READ,
	.taps_written = mha_TAPS_WRITTEN,
	.cache = mha_cache_size,
	.work = mha_work,
	.forward = mha_forward,
	.backward = mha_backward,
	.step = mha_step,
	.fill = mha_fill,
};
MIXER_REGISTER(mha);
