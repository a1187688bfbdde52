// SPDX-License-Identifier: MIT
/*
 * AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101) with the limit on the
 * global norm and the guard against what is not finite.
 */
#include "train.h"

static const struct optim_hyper hyper = {
	.beta1 = CONFIG_ADAM_BETA1,
	.beta2 = CONFIG_ADAM_BETA2,
	.epsilon = CONFIG_ADAM_EPSILON,
	.grad_clip = CONFIG_GRAD_CLIP,
	.inv_accum = 1.0 / CONFIG_GRADIENT_ACCUMULATION,
};

void optim_update(struct optim *o, struct model *m, grad_t *grad, double lr, double loss)
{
	optim_apply(o, m, grad, lr, loss, &hyper);
}
