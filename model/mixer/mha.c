// SPDX-License-Identifier: MIT
/*
 * Multi-head attention of GPT-2 (Radford et al. 2019; Vaswani et al. 2017, arXiv
 * 1706.03762): one projection to queries, keys and values, causal softmax with
 * scale 1/sqrt(D), output projection; biases on both.
 */
#include <math.h>

#include "mixer.h"
#include "util.h"
#include "../linear.h"

struct mha_param {
	TENSOR param_t c_attn[3 * C][C];
	TENSOR param_t c_attn_bias[3 * C];
	TENSOR param_t c_proj[C][C];
	TENSOR param_t c_proj_bias[C];
};

struct mha_act {
	TENSOR act_t qkv[BT][3][H][D];
	TENSOR act_t o[BT][H][D];
	TENSOR acc_t lse[BT][H];
};

struct mha_tmp {
	TENSOR act_t dqkv[BT][3][H][D];
	TENSOR act_t d_o[BT][H][D];
	TENSOR acc_t delta[BT][H];
};

struct mha_cache {
	TENSOR act_t k[T_MAX][H][D];
	TENSOR act_t v[T_MAX][H][D];
};

struct mha_step_tmp {
	TENSOR act_t q[B_MAX][H][D];
	TENSOR act_t o[B_MAX][H][D];
};

static const struct param mha_params[] = {
	PARAM(struct mha_param, c_attn, "c_attn.weight", INIT_NORMAL, 0, DECAY, 3 * C, C),
	PARAM(struct mha_param, c_attn_bias, "c_attn.bias", INIT_ZERO, 0, NO_DECAY, 3 * C),
	PARAM(struct mha_param, c_proj, "c_proj.weight", INIT_RESIDUAL, 0, DECAY, C, C),
	PARAM(struct mha_param, c_proj_bias, "c_proj.bias", INIT_ZERO, 0, NO_DECAY, C),
};

static struct attn mha_attn(const struct mixer_args *a)
{
	struct mha_act *act = a->act;

	return (struct attn){
		.b = a->b, .t = a->t, .heads = H, .dk = D, .dv = D,
		.q = act->qkv[0][0][0], .q_row = 3 * C, .q_head = D,
		.k = act->qkv[0][1][0], .k_row = 3 * C, .k_head = D,
		.v = act->qkv[0][2][0], .v_row = 3 * C, .v_head = D,
		.o = act->o[0][0], .o_row = C, .o_head = D,
		.lse = act->lse[0], .scale = 1 / sqrt(D),
	};
}

static void mha_forward(const struct mixer_args *a)
{
	const struct mha_param *w = a->w;
	struct mha_act *act = a->act;
	struct attn at = mha_attn(a);
	int n = a->b * a->t;

	linear_bias_fwd(act->qkv, 3 * C, a->x, w->c_attn, w->c_attn_bias, n, 3 * C, C);
	k_attn_fwd(&at);
	linear_bias_fwd(a->y, C, act->o, w->c_proj, w->c_proj_bias, n, C, C);
}

static void mha_backward(const struct mixer_args *a)
{
	const struct mha_param *w = a->w;
	struct mha_act *act = a->act;
	struct mha_tmp *tmp = a->tmp;
	struct attn at = mha_attn(a);
	int n = a->b * a->t;

	linear_dw(GRAD(a->dw, struct mha_param, c_proj), a->dy, act->o, n, C, C, 1, 0);
	k_bias_grad(GRAD(a->dw, struct mha_param, c_proj_bias), a->dy, n, C);
	linear_dx(tmp->d_o, a->dy, w->c_proj, n, C, C, 1, 0);
	k_attn_bwd(&at, tmp->dqkv[0][0][0], tmp->dqkv[0][1][0], tmp->dqkv[0][2][0], NULL,
		   tmp->d_o[0][0], tmp->delta[0]);
	linear_dw(GRAD(a->dw, struct mha_param, c_attn), tmp->dqkv, a->x, n, 3 * C, C, 1, 0);
	k_bias_grad(GRAD(a->dw, struct mha_param, c_attn_bias), tmp->dqkv[0][0][0], n, 3 * C);
	linear_dx(a->dx, tmp->dqkv, w->c_attn, n, 3 * C, C, 1, 0);
}

/* One third of c_attn: dst row i at dst + i * ld */
static void mha_step_proj(const struct mixer_args *a, int third, act_t *dst, long ld)
{
	const struct mha_param *w = a->w;

	linear_bias_fwd(dst, ld, a->x, w->c_attn[third * C], w->c_attn_bias + third * C, a->b, C,
			C);
}

static void mha_step(const struct mixer_args *a, void *cache, int pos)
{
	const long stride = sizeof(struct mha_cache) / sizeof(act_t);
	const struct mha_param *w = a->w;
	struct mha_cache *kv = cache;
	struct mha_step_tmp *tmp = a->tmp;

	mha_step_proj(a, 0, tmp->q[0][0], C);
	mha_step_proj(a, 1, kv->k[pos][0], stride);
	mha_step_proj(a, 2, kv->v[pos][0], stride);
	k_attn_step(&(struct attn_step){
		.b = a->b, .heads = H, .dk = D, .dv = D, .pos = pos, .q = tmp->q[0][0],
		.k = kv->k[0][0], .k_row = C, .k_head = D, .v = kv->v[0][0], .v_row = C,
		.v_head = D, .cache_stride = stride, .o = tmp->o[0][0], .scale = 1 / sqrt(D) });
	linear_bias_fwd(a->y, C, tmp->o, w->c_proj, w->c_proj_bias, a->b, C, C);
}

static struct cache_size mha_cache_size(unsigned int read)
{
	(void)read;
	return (struct cache_size){ sizeof(struct mha_cache), sizeof(act_t) * 2 * C };
}

/* Products, and t (t + 1) / 2 visible pairs of width D for scores and values. */
static double mha_flops(int b, int t, unsigned int read)
{
	(void)read;
	return linear_flops((double)b * t, C, 4 * C) + 2 * linear_flops(causal_pairs(b, t, t), C, 1);
}

/* Twice the products; attention recomputes the scores: five products for two. */
static double mha_flops_bwd(int b, int t, unsigned int read)
{
	(void)read;
	return 2 * linear_flops((double)b * t, C, 4 * C) +
	       5 * linear_flops(causal_pairs(b, t, t), C, 1);
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
	.cache = mha_cache_size,
	.flops = mha_flops,
	.flops_bwd = mha_flops_bwd,
	.forward = mha_forward,
	.backward = mha_backward,
	.step = mha_step,
};
MIXER_REGISTER(mha);
