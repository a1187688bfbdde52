// SPDX-License-Identifier: MIT
/*
 * Decode: prompts through the forward into the caches, then one token per sequence at
 * a time. Positions live on the device, so that a step is the same kernels each time.
 */
#include "stack.h"

static const acc_t *step_logits(struct model *m, int b)
{
	struct gemm g = stack_logits(m, m->step_xn, b);

	g.c = m->step_logits;
	k_gemm_acc(&g);
	k_mask_padding(m->step_logits, b, V, CONFIG_VOCAB_SIZE);
	return m->step_logits;
}

const acc_t *model_fill(struct model *m, const struct batch *x, const int32_t *len)
{
	model_load(m, &(struct batch){ .b = x->b, .t = x->t, .tok = x->tok });
	arch_put(m->step_pos, len, sizeof(*len) * x->b);
	stack_forward(m, false, m->step_pos);
	k_last_rows(m->step_xn, m->xn[NR_SUB], m->step_pos, x->b, x->t, C);
	return step_logits(m, x->b);
}

static void step_norm(struct model *m, int s, int b)
{
	struct norm norm = stack_norm(m, s, b);

	norm.x = m->step_x;
	norm.y = s ? m->y : NULL;
	norm.xo = m->step_x;
	norm.xn = m->step_xn;
	norm.mean = RMS ? NULL : m->step_stat;
	norm.rstd = m->step_stat + m->sequences;
	k_add_norm_fwd(&norm);
}

static void step_sub(struct model *m, int s, int b)
{
	struct mixer_args a = stack_args(m, s, b, 1);

	a.act = NULL;
	a.x = m->step_xn;
	a.y = m->y;
	stack_taps(m, s, (const void *const *)m->step_tap, a.in);
	for (int tap = 0; tap < NR_TAPS; tap++)
		a.out[tap] = m->sub[s].has & 1u << tap ? m->step_tap[tap] : NULL;
	m->sub[s].mixer->step(&a, m->cache[s], m->step_pos);
}

/* One recorded step: a model and how many of its sequences. */
struct step {
	struct model *m;
	int b;
};

static void step_body(void *arg)
{
	const struct step *step = arg;
	struct model *m = step->m;
	const struct embed_param *w = stack_embed(m);

	k_weights_rest(m->w, m->param_elems * sizeof(*m->w));
	k_embed_fwd(m->step_x, m->step_tok, m->step_pos, w->wte[0], POSITIONS ? w->wpe[0] : NULL,
		    step->b, 1, C);
	for (int s = 0; s < NR_SUB; s++) {
		step_norm(m, s, step->b);
		step_sub(m, s, step->b);
	}
	step_norm(m, NR_SUB, step->b);
	step_logits(m, step->b);
	k_weights_rest(NULL, 0);
}

const acc_t *model_step(struct model *m, const int32_t *tok, const int32_t *pos, int b)
{
	struct step step = { m, b };

	arch_put(m->step_tok, tok, sizeof(*tok) * b);
	arch_put(m->step_pos, pos, sizeof(*pos) * b);
	arch_replay(&m->step[b - 1], step_body, &step);
	return m->step_logits;
}
