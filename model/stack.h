/* SPDX-License-Identifier: MIT */
/*
 * What training (model.c) and decode (decode.c) share of the stack.
 */
#ifndef TENON_STACK_H
#define TENON_STACK_H

#include "model.h"

/** stack_args() - what every call of sub-layer @s has */
struct mixer_args stack_args(const struct model *m, int s, int b, int t);

/** stack_taps() - what sub-layer @s reads: @in[NR_TAPS], of the values @written last */
void stack_taps(const struct model *m, int s, const void *const *written, const void **in);

/**
 * stack_forward() - embedding, sub-layers and norms over the loaded batch
 * @train: auxiliary losses are added up
 * @len: NULL, or device [b]: every sub-layer fills its cache
 */
void stack_forward(struct model *m, bool train, const int32_t *len);

static inline const struct embed_param *stack_embed(const struct model *m)
{
	return (const struct embed_param *)m->w;
}

/* The head's weight [V][C]. */
static inline const param_t *stack_head(const struct model *m)
{
	return TIED ? stack_embed(m)->wte[0] : m->w + m->head;
}

/* n rows of logits from normed rows, but for where they go. */
static inline struct gemm stack_logits(const struct model *m, const act_t *xn, int n)
{
	return (struct gemm){ .m = n, .n = V, .k = C, .tb = true, .a = xn, .lda = C,
			      .b = stack_head(m), .ldb = C, .ldc = V, .alpha = 1 };
}

/* The norm before sub-layer s, or the last one, over n rows, but for its buffers. */
static inline struct norm stack_norm(const struct model *m, int s, int n)
{
	const struct norm_param *w = (const struct norm_param *)
		(m->w + (s < NR_SUB ? m->sub[s].norm : m->ln_f));

	return (struct norm){ .n = n, .c = C, .rms = RMS, .epsilon = CONFIG_NORM_EPSILON,
			      .w = w->weight, .bias = RMS ? NULL : w->bias };
}

#endif
