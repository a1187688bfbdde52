// SPDX-License-Identifier: MIT
/*
 * What mla projects x to: latents of keys and values, half by half, queries in one of
 * three ways, and the key that all heads have in common; forward and backward.
 */
#include "mla.h"
#include "util.h"

#define MLA_GRAD(a, field) GRAD((a)->dw, struct mla_param, field)

void mla_rotate(int n, int t, const int32_t *pos, bool back, const struct rope_heads *x, int nr)
{
	if (FULL || DR)
		k_rope(&(struct rope){ .n = n, .t = t, .pos = pos, .width = FULL ? DN : DR,
				       .theta = CONFIG_ROPE_THETA, .back = back }, x, nr);
}

static struct norm latent_norm(act_t *pre, act_t *to, acc_t *rstd, const acc_t *w, int n, int width)
{
	return (struct norm){ .n = n, .c = width, .rms = true, .epsilon = CONFIG_NORM_EPSILON,
			      .x = pre, .xn = to, .rstd = rstd, .w = w };
}

static struct norm half_norm(const struct mla_rows *s, int half)
{
	return latent_norm(s->pre[half], s->c[half], s->rstd[half],
			   s->w->kv_a_layernorm + half * R, s->n, R);
}

static struct norm query_norm(const struct mla_rows *s)
{
	return latent_norm(s->qa_pre, s->qa, s->qa_rstd, s->w->q_a_layernorm, s->n, RQ);
}

/* ---- forward ------------------------------------------------------------------ */

static void half_fwd(const struct mla_rows *s, int half)
{
	struct norm norm = half_norm(s, half);

	linear_bias_fwd(s->pre[half], s->x, s->w->kv_a_proj[half * R],
			s->w->kv_a_proj_bias + half * R, s->n, R, C);
	if (NORM)
		k_add_norm_fwd(&norm);
	if (SPLICE && (s->has & SPLICED))
		mla_splice_fwd(s, half);
}

/* Both parts of every head's query, side by side. */
static void query_join(const struct mla_rows *s)
{
	k_axpby(s->q, DK, s->qn, DN, s->n * H, DN, 1, 0);
	k_axpby(s->q + DN, DK, s->qr, DR, s->n * H, DR, 1, 0);
}

static void query_fwd(const struct mla_rows *s)
{
	const struct mla_param *w = s->w;
	struct norm norm = query_norm(s);

	if (DIRECT) {
		linear_bias_fwd(s->q, s->x, w->q_proj, w->q_proj_bias, s->n, H * DK, C);
		return;
	}
	if (LATENT)
		linear_bias_fwd(s->qa_pre, s->x, w->q_a_proj, w->q_a_proj_bias, s->n, RQ, C);
	if (LATENT && NORM)
		k_add_norm_fwd(&norm);
	linear_bias_fwd(FROM_X ? s->qn : s->q, LATENT ? s->qa : mla_latent(s, 0), w->q_b_proj,
			w->q_b_proj_bias, s->n, H * DQ, QIN);
	if (!FROM_X)
		return;
	linear_bias_fwd(s->qr, s->x, w->q_rope_proj, w->q_rope_proj_bias, s->n, H * DR, C);
	query_join(s);
}

void mla_project(const struct mla_rows *s)
{
	const struct mla_param *w = s->w;

	for (int half = 0; half < HALVES; half++)
		half_fwd(s, half);
	query_fwd(s);
	if (DR)
		linear_bias_fwd(s->kr, s->x, w->k_rope_proj, w->k_rope_proj_bias, s->n, DR, C);
}

/* ---- backward ----------------------------------------------------------------- */

/* The query's latent; dx is added to with @beta. */
static void query_latent_bwd(const struct mixer_args *a, const struct mla_rows *s, const act_t *dqb,
			     double beta)
{
	const struct mla_param *w = a->w;
	struct mla_tmp *tmp = a->tmp;
	struct norm norm = query_norm(s);
	act_t *d = (act_t *)(tmp->dqa + NORM);

	linear_dx((act_t *)tmp->dqa, dqb, w->q_b_proj, s->n, H * DQ, RQ, 1, 0);
	if (NORM)
		k_norm_bwd(&norm, d, NULL, (act_t *)tmp->dqa, MLA_GRAD(a, q_a_layernorm), NULL);
	linear_dw(MLA_GRAD(a, q_a_proj), MLA_GRAD(a, q_a_proj_bias), d, a->x, s->n, RQ, C, 1, 0);
	linear_dx(a->dx, d, w->q_a_proj, s->n, RQ, C, 1, beta);
}

/* The rotated part that comes from x: the first to write dx. */
static void query_rope_bwd(const struct mixer_args *a, const struct mla_rows *s)
{
	const struct mla_param *w = a->w;
	struct mla_tmp *tmp = a->tmp;

	k_axpby(s->qn, DN, tmp->dq[0][0], DK, s->n * H, DN, 1, 0);
	k_axpby(s->qr, DR, tmp->dq[0][0] + DN, DK, s->n * H, DR, 1, 0);
	linear_dw(MLA_GRAD(a, q_rope_proj), MLA_GRAD(a, q_rope_proj_bias), s->qr, a->x, s->n,
		  H * DR, C, 1, 0);
	linear_dx(a->dx, s->qr, w->q_rope_proj, s->n, H * DR, C, 1, 0);
}

/* Returns: whether dx was written. */
static bool query_bwd(const struct mixer_args *a, const struct mla_rows *s)
{
	const struct mla_param *w = a->w;
	struct mla_tmp *tmp = a->tmp;
	const act_t *dq = tmp->dq[0][0], *dqb = FROM_X ? s->qn : dq;

	if (DIRECT) {
		linear_dw(MLA_GRAD(a, q_proj), MLA_GRAD(a, q_proj_bias), dq, a->x, s->n, H * DK, C,
			  1, 0);
		linear_dx(a->dx, dq, w->q_proj, s->n, H * DK, C, 1, 0);
		return true;
	}
	if (FROM_X)
		query_rope_bwd(a, s);
	linear_dw(MLA_GRAD(a, q_b_proj), MLA_GRAD(a, q_b_proj_bias), dqb,
		  LATENT ? s->qa : mla_latent(s, 0), s->n, H * DQ, QIN, 1, 0);
	if (LATENT)
		query_latent_bwd(a, s, dqb, FROM_X);
	else
		linear_dx(tmp->dlatent[0][0], dqb, w->q_b_proj, s->n, H * DQ, R, 1, 1);
	return LATENT || FROM_X;
}

/* From dlatent through splice and norm to kv_a_proj; dx is added to with @beta. */
static void half_bwd(const struct mixer_args *a, const struct mla_rows *s, int half, double beta)
{
	const struct mla_param *w = a->w;
	struct mla_tmp *tmp = a->tmp;
	struct norm norm = half_norm(s, half);
	act_t *d = tmp->dlatent[half][0], *other = tmp->dc[half][0], *swap;

	if (SPLICE && (s->has & SPLICED)) {
		mla_splice_bwd(a, s, half);
		swap = d;
		d = other;
		other = swap;
	}
	if (NORM) {
		k_norm_bwd(&norm, other, NULL, d, MLA_GRAD(a, kv_a_layernorm) + half * R, NULL);
		d = other;
	}
	linear_dw(MLA_GRAD(a, kv_a_proj) + (size_t)half * R * C,
		  MLA_GRAD(a, kv_a_proj_bias) + half * R, d, a->x, s->n, R, C, 1, 0);
	linear_dx(a->dx, d, w->kv_a_proj[half * R], s->n, R, C, 1, beta);
}

void mla_project_bwd(const struct mixer_args *a, const struct mla_rows *s)
{
	const struct mla_param *w = a->w;
	struct mla_tmp *tmp = a->tmp;
	bool written = query_bwd(a, s);

	for (int half = 0; half < HALVES; half++)
		half_bwd(a, s, half, half || written);
	if (!DR)
		return;
	linear_dw(MLA_GRAD(a, k_rope_proj), MLA_GRAD(a, k_rope_proj_bias), tmp->dkr, a->x, s->n, DR,
		  C, 1, 0);
	linear_dx(a->dx, tmp->dkr, w->k_rope_proj, s->n, DR, C, 1, 1);
}

/* ---- operations ---------------------------------------------------------------- */

void mla_project_work(struct work *w, int n, unsigned int has, bool backward, bool chat)
{
	for (int half = 0; half < HALVES; half++) {
		work_linear(w, n, R, C, backward);
		if (SPLICE && (has & SPLICED))
			mla_splice_work(w, n, backward, chat);
	}
	if (DIRECT)
		work_linear(w, n, H * DK, C, backward);
	else
		work_linear(w, n, H * DQ, QIN, backward);
	if (LATENT)
		work_linear(w, n, RQ, C, backward);
	if (FROM_X)
		work_linear(w, n, H * DR, C, backward);
	if (DR)
		work_linear(w, n, DR, C, backward);
}
