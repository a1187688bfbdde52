// SPDX-License-Identifier: MIT
/*
 * mlp_splice - GPT-2's MLP behind a tied bottleneck:
 *
 *     u = x p^T [S];  v = c_proj GELU(c_fc u) [S];  y = v p        p = splice.weight [S][C]
 *
 * Biases on c_fc and c_proj alone. Documentation/mlp-splice.md.
 */
#include "mixer.h"
#include "util.h"
#include "../linear.h"

enum {
	S = CONFIG_MLP_SPLICE_DIM,
	S4 = 4 * S,
};

struct mlp_splice_param {
	TENSOR param_t splice[S][C];
	TENSOR param_t c_fc[S4][S];
	TENSOR param_t c_fc_bias[BIAS * S4];
	TENSOR param_t c_proj[S][S4];
	TENSOR param_t c_proj_bias[BIAS * S];
};

struct mlp_splice_act {
	TENSOR act_t u[BT][S];
	TENSOR act_t pre[BT][S4];
	TENSOR act_t v[BT][S];
};

struct mlp_splice_again {
	TENSOR act_t h[BT][S4];
};

struct mlp_splice_tmp {
	TENSOR act_t dv[BT][S];
	TENSOR act_t dpre[BT][S4];
	TENSOR act_t du[BT][S];
};

struct mlp_splice_step_tmp {
	TENSOR act_t u[B_MAX][S];
	TENSOR act_t pre[B_MAX][S4];
	TENSOR act_t h[B_MAX][S4];
	TENSOR act_t v[B_MAX][S];
};

static const struct param mlp_splice_params[] = {
	PARAM(struct mlp_splice_param, splice, "splice.weight", init_normal, 0, DECAY, S, C),
	PARAM(struct mlp_splice_param, c_fc, "c_fc.weight", init_normal, 0, DECAY, S4, S),
	PARAM(struct mlp_splice_param, c_fc_bias, "c_fc.bias", init_zero, 0, NO_DECAY, BIAS * S4),
	PARAM(struct mlp_splice_param, c_proj, "c_proj.weight", init_normal, 0, DECAY, S, S4),
	PARAM(struct mlp_splice_param, c_proj_bias, "c_proj.bias", init_zero, 0, NO_DECAY, BIAS * S),
};

static void mlp_splice_rows(const struct mixer_args *a, act_t *u, act_t *pre, act_t *h, act_t *v,
			    int n)
{
	const struct mlp_splice_param *w = a->w;

	linear_fwd(u, a->x, w->splice, n, S, C, 1, 0);
	linear_gelu_fwd(h, pre, u, w->c_fc, w->c_fc_bias, n, S4, S);
	linear_bias_fwd(v, h, w->c_proj, w->c_proj_bias, n, S, S4);
	linear_dx(a->y, v, w->splice, n, S, C, 1, 0);
}

static void mlp_splice_forward(const struct mixer_args *a)
{
	struct mlp_splice_act *act = a->act;
	struct mlp_splice_again *again = a->again;

	mlp_splice_rows(a, act->u[0], act->pre[0], again->h[0], act->v[0], a->b * a->t);
}

static void mlp_splice_make_again(const struct mixer_args *a)
{
	struct mlp_splice_act *act = a->act;
	struct mlp_splice_again *again = a->again;

	k_gelu_fwd(again->h[0], act->pre[0], (size_t)a->b * a->t * S4);
}

/* The gradient of splice.weight: of the way out, then that of the way in is added. */
static void mlp_splice_backward(const struct mixer_args *a)
{
	const struct mlp_splice_param *w = a->w;
	const struct mlp_splice_act *act = a->act;
	const struct mlp_splice_again *again = a->again;
	struct mlp_splice_tmp *tmp = a->tmp;
	grad_t *dp = GRAD(a->dw, struct mlp_splice_param, splice);
	int n = a->b * a->t;

	linear_dw(dp, NULL, act->v, a->dy, n, S, C, 1, 0);
	linear_fwd(tmp->dv[0], a->dy, w->splice, n, S, C, 1, 0);
	linear_dw(GRAD(a->dw, struct mlp_splice_param, c_proj),
		  GRAD(a->dw, struct mlp_splice_param, c_proj_bias), tmp->dv, again->h, n, S, S4, 1,
		  0);
	linear_dgelu(tmp->dpre[0], act->pre[0], tmp->dv, w->c_proj, n, S, S4);
	linear_dw(GRAD(a->dw, struct mlp_splice_param, c_fc),
		  GRAD(a->dw, struct mlp_splice_param, c_fc_bias), tmp->dpre, act->u, n, S4, S, 1,
		  0);
	linear_dx(tmp->du[0], tmp->dpre, w->c_fc, n, S4, S, 1, 0);
	linear_dw(dp, NULL, tmp->du, a->x, n, S, C, 1, 1);
	linear_dx(a->dx, tmp->du, w->splice, n, S, C, 1, 0);
}

static void mlp_splice_step(const struct mixer_args *a, void *cache, const int32_t *pos)
{
	struct mlp_splice_step_tmp *tmp = a->tmp;

	(void)cache;
	(void)pos;
	mlp_splice_rows(a, tmp->u[0], tmp->pre[0], tmp->h[0], tmp->v[0], a->b);
}

static void mlp_splice_work(struct work *w, int b, int t, unsigned int has, bool backward)
{
	int n = b * t;

	(void)has;
	work_linear(w, n, S, C, backward);
	work_linear(w, n, S4, S, backward);
	work_linear(w, n, S, S4, backward);
	work_linear(w, n, C, S, backward);
}

static const struct mixer mlp_splice = {
	.name = "mlp_splice",
	.role = ROLE_MLP,
	.params = mlp_splice_params,
	.nr_params = ARRAY_SIZE(mlp_splice_params),
	.param_size = sizeof(struct mlp_splice_param),
	.act_size = sizeof(struct mlp_splice_act),
	.again_size = sizeof(struct mlp_splice_again),
	.tmp_size = sizeof(struct mlp_splice_tmp),
	.step_tmp_size = sizeof(struct mlp_splice_step_tmp),
	.taps_read = mlp_splice_TAPS_READ,
	.taps_written = mlp_splice_TAPS_WRITTEN,
	.work = mlp_splice_work,
	.forward = mlp_splice_forward,
	.again = mlp_splice_make_again,
	.backward = mlp_splice_backward,
	.step = mlp_splice_step,
};
MIXER_REGISTER(mlp_splice);
