// SPDX-License-Identifier: MIT
/*
 * The MLP of GPT-2 (Radford et al. 2019): y = c_proj GELU(c_fc x), both with bias,
 * the tanh form of GELU, hidden width F.
 */
#include "mixer.h"
#include "util.h"
#include "../linear.h"

struct mlp_param {
	TENSOR param_t c_fc[F][C];
	TENSOR param_t c_fc_bias[BIAS * F];
	TENSOR param_t c_proj[C][F];
	TENSOR param_t c_proj_bias[BIAS * C];
};

struct mlp_act {
	TENSOR act_t pre[BT][F];
};

struct mlp_again {
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
	PARAM(struct mlp_param, c_fc, "c_fc.weight", init_normal, 0, DECAY, F, C),
	PARAM(struct mlp_param, c_fc_bias, "c_fc.bias", init_zero, 0, NO_DECAY, BIAS * F),
	PARAM(struct mlp_param, c_proj, "c_proj.weight", init_residual, 0, DECAY, C, F),
	PARAM(struct mlp_param, c_proj_bias, "c_proj.bias", init_zero, 0, NO_DECAY, BIAS * C),
};

/* pre = x c_fc' + bias, h = gelu(pre), y = h c_proj' + bias, over n rows */
static void mlp_rows(const struct mixer_args *a, act_t *pre, act_t *h, int n)
{
	const struct mlp_param *w = a->w;

	linear_gelu_fwd(h, pre, a->x, w->c_fc, w->c_fc_bias, n, F, C);
	linear_bias_fwd(a->y, h, w->c_proj, w->c_proj_bias, n, C, F);
}

static void mlp_forward(const struct mixer_args *a)
{
	struct mlp_act *act = a->act;
	struct mlp_again *again = a->again;

	mlp_rows(a, act->pre[0], again->h[0], a->b * a->t);
}

static void mlp_make_again(const struct mixer_args *a)
{
	struct mlp_act *act = a->act;
	struct mlp_again *again = a->again;

	k_gelu_fwd(again->h[0], act->pre[0], (size_t)a->b * a->t * F);
}

static void mlp_backward(const struct mixer_args *a)
{
	const struct mlp_param *w = a->w;
	const struct mlp_act *act = a->act;
	const struct mlp_again *again = a->again;
	struct mlp_tmp *tmp = a->tmp;
	int n = a->b * a->t;

	linear_dw(GRAD(a->dw, struct mlp_param, c_proj), GRAD(a->dw, struct mlp_param, c_proj_bias),
		  a->dy, again->h, n, C, F, 1, 0);
	linear_dgelu(tmp->dpre[0], act->pre[0], a->dy, w->c_proj, n, C, F);
	linear_dw(GRAD(a->dw, struct mlp_param, c_fc), GRAD(a->dw, struct mlp_param, c_fc_bias),
		  tmp->dpre, a->x, n, F, C, 1, 0);
	linear_dx(a->dx, tmp->dpre, w->c_fc, n, F, C, 1, 0);
}

static void mlp_step(const struct mixer_args *a, void *cache, const int32_t *pos)
{
	struct mlp_step_tmp *tmp = a->tmp;

	(void)cache;
	(void)pos;
	mlp_rows(a, tmp->pre[0], tmp->h[0], a->b);
}

static void mlp_work(struct work *w, int b, int t, unsigned int has, bool backward)
{
	(void)has;
	work_linear(w, b * t, F, C, backward);
	work_linear(w, b * t, C, F, backward);
}

static const struct mixer mlp = {
	.name = "mlp",
	.role = ROLE_MLP,
	.params = mlp_params,
	.nr_params = ARRAY_SIZE(mlp_params),
	.param_size = sizeof(struct mlp_param),
	.act_size = sizeof(struct mlp_act),
	.again_size = sizeof(struct mlp_again),
	.tmp_size = sizeof(struct mlp_tmp),
	.step_tmp_size = sizeof(struct mlp_step_tmp),
	.taps_read = mlp_TAPS_READ,
	.taps_written = mlp_TAPS_WRITTEN,
	.work = mlp_work,
	.forward = mlp_forward,
	.again = mlp_make_again,
	.backward = mlp_backward,
	.step = mlp_step,
};
MIXER_REGISTER(mlp);
