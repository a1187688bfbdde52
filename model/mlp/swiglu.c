// SPDX-License-Identifier: MIT
/*
 * The MLP of LLaMA: y = (silu(x gate_proj^T) * x up_proj^T) down_proj^T, hidden width F,
 * no biases. Shazeer 2020, arXiv 2002.05202; Touvron et al. 2023, arXiv 2302.13971.
 */
#include "swiglu.h"
#include "util.h"

struct swiglu_param {
	TENSOR param_t gate_proj[F][C];
	TENSOR param_t up_proj[F][C];
	TENSOR param_t down_proj[C][F];
};

struct swiglu_act {
	TENSOR act_t gu[BT][2 * F];	/* x gate_proj^T | x up_proj^T */
};

struct swiglu_again {
	TENSOR act_t h[BT][F];
};

struct swiglu_tmp {
	TENSOR act_t dgu[BT][2 * F];
	TENSOR act_t dh[BT][F];
};

struct swiglu_step_tmp {
	TENSOR act_t gu[B_MAX][2 * F];
	TENSOR act_t h[B_MAX][F];
};

static const struct param swiglu_params[] = {
	PARAM(struct swiglu_param, gate_proj, "gate_proj.weight", init_normal, 0, DECAY, F, C),
	PARAM(struct swiglu_param, up_proj, "up_proj.weight", init_normal, 0, DECAY, F, C),
	PARAM(struct swiglu_param, down_proj, "down_proj.weight", init_residual, 0, DECAY, C, F),
};

static struct swiglu_weights weights(const struct mixer_args *a)
{
	const struct swiglu_param *w = a->w;

	return (struct swiglu_weights){ w->gate_proj[0], w->up_proj[0], w->down_proj[0] };
}

static void swiglu_forward(const struct mixer_args *a)
{
	const struct swiglu_weights w = weights(a);
	struct swiglu_act *act = a->act;
	struct swiglu_again *again = a->again;

	swiglu_fwd(a->y, act->gu[0], again->h[0], a->x, &w, a->b * a->t, F);
}

static void swiglu_make_again(const struct mixer_args *a)
{
	struct swiglu_act *act = a->act;
	struct swiglu_again *again = a->again;

	k_swiglu_fwd(again->h[0], act->gu[0], a->b * a->t, F);
}

static void swiglu_backward(const struct mixer_args *a)
{
	const struct swiglu_weights w = weights(a);
	const struct swiglu_grads dw = { GRAD(a->dw, struct swiglu_param, gate_proj),
					 GRAD(a->dw, struct swiglu_param, up_proj),
					 GRAD(a->dw, struct swiglu_param, down_proj) };
	const struct swiglu_act *act = a->act;
	const struct swiglu_again *again = a->again;
	struct swiglu_tmp *tmp = a->tmp;

	swiglu_bwd(a->dx, 0, &dw, a->dy, act->gu[0], again->h[0], tmp->dgu[0], tmp->dh[0], a->x, &w,
		   a->b * a->t, F);
}

static void swiglu_step(const struct mixer_args *a, void *cache, const int32_t *pos)
{
	const struct swiglu_weights w = weights(a);
	struct swiglu_step_tmp *tmp = a->tmp;

	(void)cache;
	(void)pos;
	swiglu_fwd(a->y, tmp->gu[0], tmp->h[0], a->x, &w, a->b, F);
}

static void swiglu_count(struct work *w, int b, int t, unsigned int has, bool backward)
{
	(void)has;
	swiglu_work(w, b * t, F, backward);
}

static const struct mixer swiglu = {
	.name = "swiglu",
	.role = ROLE_MLP,
	.params = swiglu_params,
	.nr_params = ARRAY_SIZE(swiglu_params),
	.param_size = sizeof(struct swiglu_param),
	.act_size = sizeof(struct swiglu_act),
	.again_size = sizeof(struct swiglu_again),
	.tmp_size = sizeof(struct swiglu_tmp),
	.step_tmp_size = sizeof(struct swiglu_step_tmp),
	.taps_read = swiglu_TAPS_READ,
	.taps_written = swiglu_TAPS_WRITTEN,
	.work = swiglu_count,
	.forward = swiglu_forward,
	.again = swiglu_make_again,
	.backward = swiglu_backward,
	.step = swiglu_step,
};
MIXER_REGISTER(swiglu);
