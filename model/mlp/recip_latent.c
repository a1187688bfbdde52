// SPDX-License-Identifier: MIT
/*
 * Mechanism 3 of recip, latent reciprocity: attention's latent a enters the hidden
 * layer, and the hidden layer's latent image enters the next attention's keys.
 *
 *     c = M(h0),  h = h0 + alpha_r A(a)
 *
 *     untied           A = a attn_to_mlp^T    M = (h0 mlp_down^T) mlp_to_attn^T
 *     tied_transpose   A = a coupler^T        M = h0 coupler
 *     per_head_scalar  A, M: one factor per head, elements matched modulo L
 *
 * Documentation/latent-reciprocity.md.
 */
#include <assert.h>

#include "arch.h"
#include "recip.h"

static_assert(!RECIP_SCALAR || F % (L ? L : 1) == 0,
	      "per_head_scalar needs CONFIG_RA_MLA_LATENT_DIM to divide 4 * CONFIG_N_EMBD");

static const double alpha_r = CONFIG_RA_MLA_MLP_RECIP_ALPHA;

/* A's matrix [F][L], untied or tied */
static const void *up_weight(const struct recip *r)
{
	return RECIP_TIED ? (const void *)r->w->coupler : r->w->attn_to_mlp;
}

static void latent_up_fwd(const struct recip *r)
{
	const act_t *latent = r->a->in.latent;

	if (RECIP_SCALAR)
		k_couple_up_fwd(r->h, latent, r->w->attn_scale, r->rows, F, L, H, alpha_r);
	else
		linear_fwd(r->h, latent, up_weight(r), r->rows, F, L, alpha_r, 1);
}

static void latent_down_fwd(const struct recip *r)
{
	const struct recip_param *w = r->w;

	if (RECIP_SCALAR) {
		k_couple_down_fwd(r->latent_mix, r->h, w->mlp_scale, r->rows, F, L, H);
	} else if (RECIP_TIED) {
		linear_dx(r->latent_mix, r->h, w->coupler, r->rows, F, L, 1, 0);
	} else {
		linear_fwd(r->u, r->h, w->mlp_down, r->rows, N, F, 1, 0);
		linear_fwd(r->latent_mix, r->u, w->mlp_to_attn, r->rows, L, N, 1, 0);
	}
	r->a->out->latent_mix = r->latent_mix;
}

void recip_latent_fwd(const struct recip *r)
{
	if (r->down)
		latent_down_fwd(r);
	if (r->up)
		latent_up_fwd(r);
}

static void latent_up_bwd(const struct recip *r)
{
	const act_t *latent = r->a->in.latent;
	act_t *dlatent = r->a->din.latent;
	grad_t *dw = RECIP_TIED ? RECIP_GRAD(r, coupler) : RECIP_GRAD(r, attn_to_mlp);

	if (RECIP_SCALAR) {
		k_couple_up_bwd(RECIP_GRAD(r, attn_scale), dlatent, r->dh, latent,
				r->w->attn_scale, r->rows, F, L, H, alpha_r);
		return;
	}
	linear_dw(dw, r->dh, latent, r->rows, F, L, alpha_r, 0);
	if (dlatent)
		linear_dx(dlatent, r->dh, up_weight(r), r->rows, F, L, alpha_r, 0);
}

/* h0 is computed again from pre; the coupler's gradient adds to what A left. */
static void latent_down_bwd(const struct recip *r)
{
	const struct recip_param *w = r->w;
	const act_t *dc = r->a->dout.latent_mix;
	act_t *h0 = r->wide;

	k_gelu_fwd(h0, r->pre, (size_t)r->rows * F);
	if (RECIP_SCALAR) {
		k_couple_down_bwd(RECIP_GRAD(r, mlp_scale), r->dh, dc, h0, w->mlp_scale, r->rows,
				  F, L, H);
	} else if (RECIP_TIED) {
		linear_dw(RECIP_GRAD(r, coupler), h0, dc, r->rows, F, L, 1, r->up ? 1 : 0);
		linear_fwd(r->dh, dc, w->coupler, r->rows, F, L, 1, 1);
	} else {
		linear_dw(RECIP_GRAD(r, mlp_to_attn), dc, r->u, r->rows, L, N, 1, 0);
		linear_dx(r->du, dc, w->mlp_to_attn, r->rows, L, N, 1, 0);
		linear_dw(RECIP_GRAD(r, mlp_down), r->du, h0, r->rows, N, F, 1, 0);
		linear_dx(r->dh, r->du, w->mlp_down, r->rows, N, F, 1, 1);
	}
}

static void latent_zero_grads(const struct recip *r)
{
	if (!r->up) {
		RECIP_ZERO_GRAD(r, attn_to_mlp);
		RECIP_ZERO_GRAD(r, attn_scale);
	}
	if (!r->up && !r->down)
		RECIP_ZERO_GRAD(r, coupler);
	if (r->down || !(r->a->read & TAP_LATENT_MIX))
		return;
	RECIP_ZERO_GRAD(r, mlp_down);
	RECIP_ZERO_GRAD(r, mlp_to_attn);
	RECIP_ZERO_GRAD(r, mlp_scale);
}

void recip_latent_bwd(const struct recip *r)
{
	latent_zero_grads(r);
	if (r->up)
		latent_up_bwd(r);
	if (r->down)
		latent_down_bwd(r);
}

double recip_latent_ratio(const struct recip *r)
{
	struct recip part = *r;

	k_gelu_fwd(r->dh, r->pre, (size_t)r->rows * F);
	arch_zero(r->wide, sizeof(act_t) * r->rows * F);
	part.h = r->wide;
	latent_up_fwd(&part);
	return recip_ratio(r, r->wide, r->dh);
}

/* A is F x L; M too, or through N. The scalars touch every element once. */
static double down_flops(double rows)
{
	if (RECIP_UNTIED)
		return linear_flops(rows, N, F) + linear_flops(rows, L, N);
	return linear_flops(rows, F, RECIP_SCALAR ? 1 : L);
}

double recip_latent_flops(int b, int t, bool down)
{
	double rows = (double)b * t;

	return linear_flops(rows, F, RECIP_SCALAR ? 1 : L) + (down ? down_flops(rows) : 0);
}

double recip_latent_flops_bwd(int b, int t, bool down)
{
	double rows = (double)b * t, detached = TAPS_DETACHED & TAP_LATENT ? 1 : 0;

	return linear_flops(rows, F, RECIP_SCALAR ? 1 : L) * (2 - detached) +
	       (down ? 2 * down_flops(rows) : 0);
}
