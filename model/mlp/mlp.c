// SPDX-License-Identifier: MIT
/*
 * The MLP of GPT-2 (Radford et al. 2019): y = c_proj GELU(c_fc x), both with bias,
 * the tanh form of GELU, hidden width F = 4C.
 */
#include "mixer.h"
#include "util.h"
#include "../linear.h"

struct mlp_param {
	TENSOR param_t c_fc[F][C];
	TENSOR param_t c_fc_bias[F];
	TENSOR param_t c_proj[C][F];
	TENSOR param_t c_proj_bias[C];
};

struct mlp_act {
	TENSOR act_t pre[BT][F];
	TENSOR act_t h[BT][F];
};

struct mlp_tmp {
	TENSOR act_t dpre[BT][F];
};

struct mlp_step_tmp {
	TENSOR act_t pre[B_MAX][F];
	TENSOR act_t h[B_MAX][F];
};

static const struct param mlp_params[] = {
	PARAM(struct mlp_param, c_fc, "c_fc.weight", INIT_NORMAL, 0, DECAY, F, C),
	PARAM(struct mlp_param, c_fc_bias, "c_fc.bias", INIT_ZERO, 0, NO_DECAY, F),
	PARAM(struct mlp_param, c_proj, "c_proj.weight", INIT_RESIDUAL, 0, DECAY, C, F),
	PARAM(struct mlp_param, c_proj_bias, "c_proj.bias", INIT_ZERO, 0, NO_DECAY, C),
};

/* pre = x c_fc' + bias, h = gelu(pre), y = h c_proj' + bias, over n rows */
static void mlp_rows(const struct mixer_args *a, act_t *pre, act_t *h, int n)
{
	const struct mlp_param *w = a->w;

	linear_gelu_fwd(h, pre, a->x, w->c_fc, w->c_fc_bias, n, F, C);
	linear_bias_fwd(a->y, C, h, w->c_proj, w->c_proj_bias, n, C, F);
}

static void mlp_forward(const struct mixer_args *a)
{
	struct mlp_act *act = a->act;

	mlp_rows(a, act->pre[0], act->h[0], a->b * a->t);
}

static void mlp_backward(const struct mixer_args *a)
{
	const struct mlp_param *w = a->w;
	struct mlp_act *act = a->act;
	struct mlp_tmp *tmp = a->tmp;
	int n = a->b * a->t;

	linear_dw(GRAD(a->dw, struct mlp_param, c_proj), a->dy, act->h, n, C, F, 1, 0);
	k_bias_grad(GRAD(a->dw, struct mlp_param, c_proj_bias), a->dy, n, C);
	linear_dgelu(tmp->dpre[0], act->pre[0], a->dy, w->c_proj, n, C, F);
	linear_dw(GRAD(a->dw, struct mlp_param, c_fc), tmp->dpre, a->x, n, F, C, 1, 0);
	k_bias_grad(GRAD(a->dw, struct mlp_param, c_fc_bias), tmp->dpre[0], n, F);
	linear_dx(a->dx, tmp->dpre, w->c_fc, n, F, C, 1, 0);
}

static void mlp_step(const struct mixer_args *a, void *cache, int pos)
{
	struct mlp_step_tmp *tmp = a->tmp;

	(void)cache;
	(void)pos;
	mlp_rows(a, tmp->pre[0], tmp->h[0], a->b);
}

static double mlp_flops(int b, int t, unsigned int read)
{
	(void)read;
	return 2 * linear_flops((double)b * t, C, F);
}

static double mlp_flops_bwd(int b, int t, unsigned int read)
{
	return 2 * mlp_flops(b, t, read);
}

static const struct mixer mlp = {
	.name = "mlp",
	.role = ROLE_MLP,
	.params = mlp_params,
	.nr_params = ARRAY_SIZE(mlp_params),
	.param_size = sizeof(struct mlp_param),
	.act_size = sizeof(struct mlp_act),
	.tmp_size = sizeof(struct mlp_tmp),
	.step_tmp_size = sizeof(struct mlp_step_tmp),
	.flops = mlp_flops,
	.flops_bwd = mlp_flops_bwd,
	.forward = mlp_forward,
	.backward = mlp_backward,
	.step = mlp_step,
};
MIXER_REGISTER(mlp);
