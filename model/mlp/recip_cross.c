// SPDX-License-Identifier: MIT
/*
 * Mechanism 2 of recip, cross-token aggregation: hidden layers of earlier positions,
 * mixed by the routing R^ of the same layer's attention (detached), in two forms
 * that are equal:
 *
 *     direct  h += alpha_c (R^ h) cross_proj^T
 *     folded  [out ; z] += alpha_c R^ (h W^T),  W = [c_proj ; gate_proj] cross_proj
 *
 * Everything behind the mix is linear, so the folded form routes C + G outputs
 * instead of F hidden values and keeps neither R^ h nor the mixed h. It needs one
 * routing for the whole layer. Documentation/cross-token.md.
 */
#include "arch.h"
#include "recip.h"

static const double alpha_c = CONFIG_RA_MLA_MLP_CROSS_ALPHA;

/* Outputs of a row: c_proj's, then gate_proj's where the gate is read. */
static int outputs(const struct recip *r)
{
	return r->gate ? C + G : C;
}

/* ---- direct --------------------------------------------------------------- */

void recip_mix_fwd(const struct recip *r)
{
	k_route_gather_fwd(&r->a->in.route, r->mixed, F, r->h, F, F, 1, 0, r->scratch);
	linear_fwd(r->h, r->mixed, r->w->cross_proj, r->rows, F, F, alpha_c, 1);
}

void recip_mix_bwd(const struct recip *r)
{
	act_t *dmixed = r->wide;

	linear_dw(RECIP_GRAD(r, cross_proj), r->dh, r->mixed, r->rows, F, F, alpha_c, 0);
	linear_dx(dmixed, r->dh, r->w->cross_proj, r->rows, F, F, alpha_c, 0);
	k_route_gather_bwd(&r->a->in.route, r->dh, F, dmixed, F, F, 1, 1, r->scratch);
}

/* h is appended before the mix, so this position takes part. */
void recip_mix_step(const struct recip *r, act_t *past, long seq, int pos)
{
	for (int i = 0; i < r->rows; i++)
		arch_copy(past + i * seq + (long)pos * F, r->h + (long)i * F, sizeof(act_t) * F);
	k_route_gather_step(&r->a->in.route, r->mixed, F, past, seq, F, r->rows, F, pos, 1, 0);
	linear_fwd(r->h, r->mixed, r->w->cross_proj, r->rows, F, F, alpha_c, 1);
}

/* ---- folded --------------------------------------------------------------- */

/* W, then every row's routed outputs h W^T */
static void fold(const struct recip *r)
{
	const struct recip_param *w = r->w;

	linear_dx(r->fold, w->c_proj, w->cross_proj, C, F, F, 1, 0);
	if (r->gate)
		linear_dx(r->fold + (size_t)C * F, w->gate_proj, w->cross_proj, G, F, F, 1, 0);
	linear_fwd(r->routed, r->h, r->fold, r->rows, outputs(r), F, 1, 0);
}

void recip_fold_fwd(const struct recip *r)
{
	const struct route *route = &r->a->in.route;
	int n = outputs(r);

	fold(r);
	k_route_gather_fwd(route, r->a->y, C, r->routed, n, C, alpha_c, 1, r->scratch);
	if (r->gate)
		k_route_gather_fwd(route, r->z, r->ldz, r->routed + C, n, G, alpha_c, 1,
				   r->scratch);
}

/* Gradients of the routed outputs, of W, and of h through them. */
static void fold_bwd(const struct recip *r)
{
	const struct route *route = &r->a->in.route;
	int n = outputs(r);

	k_route_gather_bwd(route, r->routed, n, r->a->dy, C, C, alpha_c, 0, r->scratch);
	if (r->gate)
		k_route_gather_bwd(route, r->routed + C, n, r->dz, G, G, alpha_c, 0, r->scratch);
	k_gemm(&(struct gemm){
		.m = n, .n = F, .k = r->rows, .ta = true, .a = r->routed, .lda = n, .b = r->h,
		.ldb = F, .c = r->dfold, .ldc = F, .alpha = 1 });
	linear_dx(r->dh, r->routed, r->fold, r->rows, n, F, 1, 1);
}

/* W = [c_proj ; gate_proj] cross_proj: from its gradient those of all three */
void recip_fold_bwd(const struct recip *r)
{
	const struct recip_param *w = r->w;
	const act_t *dgate = r->dfold + (size_t)C * F;

	fold_bwd(r);
	linear_dw(RECIP_GRAD(r, cross_proj), w->c_proj[0], r->dfold, C, F, F, 1, 0);
	k_gemm_grad(&(struct gemm){
		.m = C, .n = F, .k = F, .tb = true, .a = r->dfold, .lda = F, .b = w->cross_proj,
		.ldb = F, .c = RECIP_GRAD(r, c_proj), .ldc = F, .alpha = 1, .beta = 1 });
	if (!r->gate)
		return;
	linear_dw(RECIP_GRAD(r, cross_proj), w->gate_proj[0], dgate, G, F, F, 1, 1);
	k_gemm_grad(&(struct gemm){
		.m = G, .n = F, .k = F, .tb = true, .a = dgate, .lda = F, .b = w->cross_proj,
		.ldb = F, .c = RECIP_GRAD(r, gate_proj), .ldc = F, .alpha = 1, .beta = 1 });
}

/* One token is too few to fold for: its outputs go through both matrices. */
void recip_fold_step(const struct recip *r, act_t *past, long seq, int pos)
{
	const struct recip_param *w = r->w;
	const struct route *route = &r->a->in.route;
	int n = outputs(r);
	act_t *now = past + (long)pos * n;
	struct gemm g = { .m = r->rows, .n = C, .k = F, .tb = true, .a = r->mixed, .lda = F,
			  .b = w->c_proj, .ldb = F, .c = now, .ldc = seq, .alpha = 1 };

	linear_fwd(r->mixed, r->h, w->cross_proj, r->rows, F, F, 1, 0);
	k_gemm(&g);
	k_route_gather_step(route, r->a->y, C, past, seq, n, r->rows, C, pos, alpha_c, 1);
	if (!r->gate)
		return;
	g.n = G;
	g.b = w->gate_proj;
	g.c = now + C;
	k_gemm(&g);
	k_route_gather_step(route, r->z, r->ldz, past + C, seq, n, r->rows, G, pos, alpha_c, 1);
}

/* ---- metrics --------------------------------------------------------------- */

/* The direct form kept R^ h and changed h, the folded one neither. */
double recip_cross_ratio(const struct recip *r)
{
	size_t n = (size_t)r->rows * F;
	const act_t *mixed = r->mixed;

	if (RECIP_FOLDED) {
		k_route_gather_fwd(&r->a->in.route, r->dh, F, r->h, F, F, 1, 0, r->scratch);
		mixed = r->dh;
	}
	linear_fwd(r->wide, mixed, r->w->cross_proj, r->rows, F, F, alpha_c, 0);
	arch_copy(r->dh, r->h, n * sizeof(act_t));
	if (RECIP_DIRECT)
		k_axpby(r->dh, r->wide, n, -1, 1);
	return recip_ratio(r, r->wide, r->dh);
}

/* ---- operations ------------------------------------------------------------ */

/*
 * One gather of @width columns: the listed entries (topk), or every visible entry
 * and the scores of all heads once more (none, rms).
 */
static double gather_flops(int b, int t, double width)
{
	if (ROUTE_MODE == ROUTE_TOPK)
		return linear_flops(causal_pairs(b, t, ROUTE_K), width, 1);
	return linear_flops(causal_pairs(b, t, t), width, 1) + score_flops(b, t);
}

/* The folded form gathers y and z apart. */
static double cross_gather_flops(int b, int t, bool gate)
{
	if (RECIP_DIRECT)
		return gather_flops(b, t, F);
	return gather_flops(b, t, C) + (gate ? gather_flops(b, t, G) : 0);
}

double recip_cross_flops(int b, int t, bool gate)
{
	double rows = (double)b * t, n = gate ? C + G : C;

	if (RECIP_DIRECT)
		return cross_gather_flops(b, t, gate) + linear_flops(rows, F, F);
	return cross_gather_flops(b, t, gate) + linear_flops(rows, n, F) + linear_flops(n, F, F);
}

double recip_cross_flops_bwd(int b, int t, bool gate)
{
	double gather = cross_gather_flops(b, t, gate);

	return gather + 2 * (recip_cross_flops(b, t, gate) - gather);
}
