// SPDX-License-Identifier: MIT
/*
 * Mechanism 1 of recip, MLP-to-attention gate: the final hidden layer, projected to
 * z [B,T,G], pooled over positions, scales each head of the next attention.
 *
 *     gamma = (1 - alpha_g) + alpha_g sigmoid(pool(z) gate_to_heads^T)
 *
 * Pools: causal (mean of z_0..z_t), token (z_t), sequence (mean over all T; leaks
 * the future). Its rows of the joined matrix are gate_proj. Documentation/gate.md.
 */
#include "recip.h"

static const double alpha_g = CONFIG_RA_MLA_MLP_GATE_ALPHA;

static bool gate_on(const struct mixer_args *a)
{
	return a->has & TAP_BIT(HEAD_GATE);
}

static int gate_rows(const struct mixer_args *a, int above)
{
	(void)above;
	return gate_on(a) ? G : 0;
}

static void gate_fill(const struct joined *j, int row)
{
	const struct recip_param *w = j->a->w;

	if (gate_on(j->a))
		k_axpby(joined_row(j, row), COLS, (const param_t *)w->gate_proj, F, G, F, 1, 0);
}

/* z leaves the product; from here on its sums are wide. */
static void gate_forward(const struct joined *j, int row)
{
	struct recip_act *act = j->a->act;
	struct recip_tmp *tmp = j->a->tmp;
	act_t *z = (act_t *)tmp->z;

	if (!gate_on(j->a))
		return;
	k_axpby(z, G, j->y + row, j->ldy, j->n, G, 1, 0);
	k_widen((acc_t *)act->z, z, (size_t)j->n * G);
}

static void gate_write(const struct joined *j, int row)
{
	const struct mixer_args *a = j->a;
	const struct recip_param *w = a->w;
	struct recip_act *act = a->act;
	acc_t *z = (acc_t *)act->z;

	(void)row;
	if (!gate_on(a))
		return;
	if (RECIP_CAUSAL)
		k_causal_mean_fwd(z, z, a->b, a->t, G);
	else if (RECIP_SEQUENCE)
		k_sequence_mean_fwd(z, z, a->b, a->t, G);
	k_head_gate_fwd(a->out[TAP_HEAD_GATE], z, (const param_t *)w->gate_to_heads, j->n, H, G,
			alpha_g);
}

static void gate_backward(const struct joined *j, int row)
{
	const struct mixer_args *a = j->a;
	const struct recip_param *w = a->w;
	struct recip_act *act = a->act;
	struct recip_tmp *tmp = a->tmp;
	acc_t *dz = (acc_t *)tmp->bwd.dz;

	if (!gate_on(a))
		return;
	k_head_gate_bwd(dz, RECIP_GRAD(a, gate_to_heads), a->out[TAP_HEAD_GATE],
			a->dout[TAP_HEAD_GATE], (acc_t *)act->z, (const param_t *)w->gate_to_heads,
			j->n, H, G, alpha_g, tmp->bwd.gate);
	if (RECIP_CAUSAL)
		k_causal_mean_bwd(dz, dz, a->b, a->t, G);
	else if (RECIP_SEQUENCE)
		k_sequence_mean_bwd(dz, dz, a->b, a->t, G);
	k_cast((act_t *)tmp->z, dz, (size_t)j->n * G);
	k_axpby(joined_dy(j, row), j->ldy, (act_t *)tmp->z, G, j->n, G, 1, 0);
}

static void gate_chain(const struct joined *j, int row)
{
	if (gate_on(j->a))
		arch_copy(RECIP_GRAD(j->a, gate_proj), j->dw + (size_t)row * F,
			  sizeof(grad_t) * G * F);
}

/* ---- decode --------------------------------------------------------------------- */

static void gate_outputs(const struct hidden *s)
{
	const struct recip_param *w = s->a->w;
	struct recip_step_tmp *tmp = s->a->tmp;

	if (gate_on(s->a))
		k_gemm_acc(&(struct gemm){
			.m = s->n, .n = G, .k = F, .tb = true, .a = s->h, .lda = F,
			.b = w->gate_proj, .ldb = F, .c = tmp->z, .ldc = G, .alpha = 1 });
}

static void gate_step(const struct hidden *s)
{
	const struct recip_param *w = s->a->w;
	struct recip_step_tmp *tmp = s->a->tmp;
	acc_t *z = (acc_t *)tmp->z;

	if (!gate_on(s->a))
		return;
	if (RECIP_CAUSAL)
		k_causal_mean_step(z, s->cache->z_sum, sizeof(*s->cache) / sizeof(acc_t), z,
				   s->pos, s->n, G);
	k_head_gate_fwd(s->a->out[TAP_HEAD_GATE], z, (const param_t *)w->gate_to_heads, s->n, H,
			G, alpha_g);
}

static void gate_fill_cache(const struct joined *j, int row, struct recip_cache *cache,
			    const int32_t *len)
{
	const struct mixer_args *a = j->a;
	const struct recip_act *act = a->act;

	(void)row;
	if (RECIP_CAUSAL && gate_on(a))
		k_causal_mean_fill(cache->z_sum, sizeof(*cache) / sizeof(acc_t),
				   (const acc_t *)act->z, len, a->b, a->t, G);
}

/* ---- operations and metrics --------------------------------------------------------- */

/* gate_to_heads; its other products are the joined matrix's. */
static void gate_work(struct work *w, const struct joined *j, int row, bool backward)
{
	(void)row;
	if (gate_on(j->a))
		work_pairs(w, (double)j->n * H, (backward ? 2.0 : 1.0) * G);
}

static void gate_work_step(struct work *w, const struct mixer_args *a, int pos)
{
	(void)pos;
	if (!gate_on(a))
		return;
	work_linear(w, 1, G, F, false);
	work_pairs(w, H, G);
}

static int gate_metrics(const struct mixer_args *a, struct metric *out)
{
	struct recip_tmp *tmp = a->tmp;
	struct stats s;

	if (!gate_on(a))
		return 0;
	k_stats_acc(&tmp->log.stats, a->out[TAP_HEAD_GATE], (size_t)a->b * a->t * H);
	arch_get(&s, &tmp->log.stats, sizeof(s));
	out[0] = (struct metric){ "gate_mean", s.mean };
	out[1] = (struct metric){ "gate_min", s.min };
	out[2] = (struct metric){ "gate_max", s.max };
	return 3;
}

const struct recip_part recip_gate = {
	.rows = gate_rows,
	.fill = gate_fill,
	.forward = gate_forward,
	.write = gate_write,
	.backward = gate_backward,
	.chain = gate_chain,
	.outputs = gate_outputs,
	.step = gate_step,
	.fill_cache = gate_fill_cache,
	.work = gate_work,
	.work_step = gate_work_step,
	.metrics = RECIP_LOG ? gate_metrics : NULL,
};
