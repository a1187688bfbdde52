// SPDX-License-Identifier: MIT
/*
 * AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101) with the limit on the
 * global norm and the guard against what is not finite.
 */
#include "adam.h"

static const struct adam_hyper hyper = {
	.beta1 = CONFIG_ADAM_BETA1,
	.beta2 = CONFIG_ADAM_BETA2,
	.epsilon = CONFIG_ADAM_EPSILON,
	.grad_clip = CONFIG_GRAD_CLIP,
	.inv_accum = 1.0 / CONFIG_GRADIENT_ACCUMULATION,
};

static void norm(struct optim *o, const struct model *m, const grad_t *grad)
{
	adam_norm(o, m, grad, &hyper);
}

static void update(struct optim *o, struct model *m, const grad_t *grad)
{
	adam_update(o, m, grad, &hyper);
}

const struct optim_rule optim_rule = { ADAM_RULE, .norm = norm, .update = update };
