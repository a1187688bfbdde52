// SPDX-License-Identifier: MIT
/*
 * AdamWSPAM: AdamW with a clip of single elements against their second moment,
 * damped moments after a spike of the global norm, and periodic resets of the
 * moments, followed by a warmup.
 *
 * Huang et al. 2025, arXiv 2501.06842. The paper takes theta 5000, interval 500
 * and warmup 150, and has no detector of norm spikes. The kernels clip the elements
 * that they read; the gradient itself is not changed.
 */
#include "adam.h"

enum {
	RESETS = IS_ENABLED(CONFIG_SPAM_PERIODIC_RESET),
	CLIPS = IS_ENABLED(CONFIG_SPAM_ENABLE_CLIP),
};

static const struct adam_hyper hyper = {
	.beta1 = CONFIG_ADAM_BETA1,
	.beta2 = CONFIG_ADAM_BETA2,
	.epsilon = CONFIG_ADAM_EPSILON,
	.grad_clip = CONFIG_GRAD_CLIP,
	.inv_accum = 1.0 / CONFIG_GRADIENT_ACCUMULATION,
	.theta = CLIPS ? CONFIG_SPAM_THETA : 0,
	.clip_after = CONFIG_SPAM_CLIP_AFTER,
	.spike = CONFIG_SPAM_SPIKE_THRESHOLD,
	.interval = RESETS ? CONFIG_SPAM_INTERVAL : 0,
	.warmup = RESETS && IS_ENABLED(CONFIG_SPAM_WARMUP) ? CONFIG_SPAM_WARMUP_STEPS : 0,
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
