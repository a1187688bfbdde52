// SPDX-License-Identifier: MIT
/*
 * Learning rate of every step: linear warmup, then one of
 *
 *   constant  lr
 *   cosine    half a cosine from lr down to min (Loshchilov and Hutter 2017,
 *             arXiv 1608.03983)
 *   wsd       lr, then linear to min over the last steps (Hu et al. 2024,
 *             arXiv 2404.06395)
 *
 * The last step reaches min exactly.
 */
#include <math.h>

#include "train.h"

static double cosine(const struct schedule *s, int64_t i, int64_t n)
{
	int64_t span = n - 1 - s->warmup;

	if (span <= 0)
		return s->lr;
	return s->min + 0.5 * (s->lr - s->min) * (1 + cos(M_PI * (i - s->warmup) / span));
}

static double stable_decay(const struct schedule *s, int64_t i, int64_t n)
{
	int64_t d = s->decay ? s->decay : n / 5;

	if (i < n - d)
		return s->lr;
	return s->lr - (s->lr - s->min) * (i - n + d + 1) / d;
}

double schedule_at(const struct schedule *s, int64_t i, int64_t n)
{
	if (i < s->warmup)
		return s->lr * (i + 1) / s->warmup;
	switch (s->kind) {
	case SCHEDULE_COSINE:
		return cosine(s, i, n);
	case SCHEDULE_WSD:
		return stable_decay(s, i, n);
	default:
		return s->lr;
	}
}

double schedule_lr(int64_t i, int64_t n)
{
	static const struct schedule s = {
		.kind = IS_ENABLED(CONFIG_LR_COSINE) ? SCHEDULE_COSINE :
			IS_ENABLED(CONFIG_LR_WSD) ? SCHEDULE_WSD : SCHEDULE_CONSTANT,
		.lr = CONFIG_LEARNING_RATE,
		.min = CONFIG_MIN_LR,
		.warmup = CONFIG_WARMUP_STEPS,
		.decay = CONFIG_LR_DECAY_STEPS,
	};

	return schedule_at(&s, i, n);
}
