// SPDX-License-Identifier: MIT
/*
 * Mechanism 3 of recip, latent reciprocity: attention's latent a enters the hidden
 * layer, and the hidden layer's latent image enters the next attention's keys.
 *
 *     c = M(h0),  h = h0 + alpha_r a A^T
 *
 *     untied           A = attn_to_mlp        M = (h0 mlp_down^T) mlp_to_attn^T
 *     tied_transpose   A = coupler            M = h0 coupler
 *     per_head_scalar  A, h0's matrix: a factor per head, elements matched modulo L
 *
 * In the joined matrix it owns the rows of M, and the columns of a in all rows above:
 * alpha_r times these rows times A. Documentation/latent-reciprocity.md.
 */
#include <assert.h>

#include "kernels_couple.h"
#include "recip.h"

static_assert(!RECIP_SCALAR || F % (L ? L : 1) == 0,
	      "per_head_scalar needs CONFIG_RA_MLA_LATENT_DIM to divide the MLP's width");

static const double alpha_r = CONFIG_RA_MLA_MLP_RECIP_ALPHA;

/* Attention's latent is there; somebody reads c. */
static bool latent_up(const struct mixer_args *a)
{
	return a->in[TAP_LATENT];
}

static bool latent_down(const struct mixer_args *a)
{
	return a->has & TAP_BIT(LATENT_MIX);
}

/* ---- matrices ---------------------------------------------------------------------- */

/* per_head_scalar: A [F][L], and M's matrix, of which an element averages F / L products */
static const struct couple up_factors = {
	.fdim = F, .l = L, .heads = H, .factor = 1, .f_stride = L, .l_stride = 1 };
static const struct couple down_factors = {
	.fdim = F, .l = L, .heads = H, .factor = (double)L / F, .f_stride = L, .l_stride = 1 };

/* A [F][L] */
static const param_t *up_matrix(const struct mixer_args *a, param_t *map)
{
	const struct recip_param *w = a->w;

	if (RECIP_SCALAR)
		k_couple_fill(&up_factors, map, w->attn_scale);
	return RECIP_SCALAR ? map : RECIP_TIED ? w->coupler[0] : w->attn_to_mlp[0];
}

/* What h0 [n][F] is multiplied with, [F][L]: not untied */
static const param_t *down_matrix(const struct mixer_args *a, param_t *map)
{
	const struct recip_param *w = a->w;

	if (RECIP_SCALAR)
		k_couple_fill(&down_factors, map, w->mlp_scale);
	return RECIP_SCALAR ? map : w->coupler[0];
}

/* Where A's gradient [F][L] is computed; factors take theirs from it. */
static grad_t *up_grad(const struct mixer_args *a)
{
	struct recip_tmp *tmp = a->tmp;

	return RECIP_SCALAR ? (grad_t *)tmp->bwd.dmap :
	       RECIP_TIED ? RECIP_GRAD(a, coupler) : RECIP_GRAD(a, attn_to_mlp);
}

static void up_grad_done(const struct mixer_args *a)
{
	if (RECIP_SCALAR)
		k_couple_grad(&up_factors, RECIP_GRAD(a, attn_scale), up_grad(a));
}

/* ---- joined ------------------------------------------------------------------------ */

static int latent_rows(const struct mixer_args *a, int above)
{
	(void)above;
	return RECIP_DIRECT || !latent_down(a) ? 0 : RECIP_UNTIED ? N : L;
}

static int latent_cols(const struct mixer_args *a)
{
	return !RECIP_DIRECT && latent_up(a) ? L : 0;
}

/* M's rows; under a's columns they are 0. */
static void fill_rows(const struct joined *j, int row)
{
	const struct recip_param *w = j->a->w;
	struct couple factors = down_factors;
	param_t *to = joined_row(j, row);

	arch_zero(to, sizeof(*to) * latent_rows(j->a, row) * COLS);
	if (RECIP_SCALAR) {
		factors.f_stride = 1;
		factors.l_stride = COLS;
		k_couple_fill(&factors, to, w->mlp_scale);
	} else if (RECIP_TIED) {
		k_transpose(to, COLS, w->coupler[0], L, F, L);
	} else {
		k_axpby(to, COLS, w->mlp_down[0], F, N, F, 1, 0);
	}
}

static void latent_beside(const struct joined *j)
{
	if (latent_cols(j->a))
		k_axpby(j->x + F, COLS, j->a->in[TAP_LATENT], L, j->n, L, 1, 0);
}

/* a's columns of the rows above. */
static void fill_cols(const struct joined *j, int row)
{
	struct recip_tmp *tmp = j->a->tmp;

	k_gemm(&(struct gemm){
		.m = row, .n = L, .k = F, .a = j->w, .lda = COLS,
		.b = up_matrix(j->a, (param_t *)tmp->map), .ldb = L,
		.c = joined_row(j, 0) + F, .ldc = COLS, .alpha = alpha_r });
}

static void latent_fill(const struct joined *j, int row)
{
	if (latent_cols(j->a))
		fill_cols(j, row);
	if (latent_rows(j->a, row))
		fill_rows(j, row);
}

/* In the direct form latent_hidden() has filled c. */
static void latent_forward(const struct joined *j, int row)
{
	const struct recip_param *w = j->a->w;
	struct recip_act *act = j->a->act;
	act_t *c = j->a->out[TAP_LATENT_MIX], *u = (act_t *)act->u;

	if (!latent_rows(j->a, row))
		return;
	k_axpby(RECIP_UNTIED ? u : c, latent_rows(j->a, row), j->y + row, j->ldy, j->n,
		latent_rows(j->a, row), 1, 0);
	if (RECIP_UNTIED)
		linear_fwd(c, u, w->mlp_to_attn, j->n, L, N, 1, 0);
}

static void latent_backward(const struct joined *j, int row)
{
	const struct recip_param *w = j->a->w;
	const struct recip_act *act = j->a->act;
	const act_t *dc = j->a->dout[TAP_LATENT_MIX];

	if (!latent_rows(j->a, row))
		return;
	if (!RECIP_UNTIED) {
		k_axpby(joined_dy(j, row), j->ldy, dc, L, j->n, L, 1, 0);
		return;
	}
	linear_dw(RECIP_GRAD(j->a, mlp_to_attn), NULL, dc, act->u, j->n, L, N, 1, 0);
	k_gemm(&(struct gemm){
		.m = j->n, .n = N, .k = L, .a = dc, .lda = L, .b = w->mlp_to_attn, .ldb = N,
		.c = joined_dy(j, row), .ldc = j->ldy, .alpha = 1 });
}

static void zero_grads(const struct mixer_args *a)
{
	if (latent_up(a))
		return;
	RECIP_ZERO_GRAD(a, attn_to_mlp);
	RECIP_ZERO_GRAD(a, attn_scale);
	if (!latent_down(a))
		RECIP_ZERO_GRAD(a, coupler);
}

/*
 * a's columns are alpha_r R A, R the rows above in h0's columns: with their gradient d,
 * dA = alpha_r R^T d and dR += alpha_r d A^T. dA is a tensor's gradient, so d is an
 * operand only, and rounded.
 */
static void chain_cols(const struct joined *j, int row)
{
	const struct mixer_args *a = j->a;
	struct recip_tmp *tmp = a->tmp;
	act_t *d = (act_t *)tmp->bwd.dw_a;

	k_gemm(&(struct gemm){
		.m = row, .n = L, .k = j->n, .ta = true, .a = j->y, .lda = j->ldy,
		.b = j->x + F, .ldb = COLS, .c = d, .ldc = L, .alpha = 1 });
	k_gemm_grad(&(struct gemm){
		.m = F, .n = L, .k = row, .ta = true, .a = j->w, .lda = COLS, .b = d, .ldb = L,
		.c = up_grad(a), .ldc = L, .alpha = alpha_r });
	up_grad_done(a);
	k_gemm_grad(&(struct gemm){
		.m = row, .n = F, .k = L, .tb = true, .a = d, .lda = L,
		.b = up_matrix(a, (param_t *)tmp->map), .ldb = L, .c = j->dw, .ldc = F,
		.alpha = alpha_r, .beta = 1 });
	if (!a->din[TAP_LATENT])
		return;
	fill_cols(j, row);
	k_gemm(&(struct gemm){
		.m = j->n, .n = L, .k = row, .a = j->y, .lda = j->ldy, .b = j->w + F, .ldb = COLS,
		.c = a->din[TAP_LATENT], .ldc = L, .alpha = 1 });
}

/* M's rows; the coupler adds to what A left. */
static void chain_rows(const struct joined *j, int row)
{
	const struct mixer_args *a = j->a;
	const grad_t *dw = j->dw + (size_t)row * F;
	struct couple factors = down_factors;

	if (RECIP_SCALAR) {
		factors.f_stride = 1;
		factors.l_stride = F;
		k_couple_grad(&factors, RECIP_GRAD(a, mlp_scale), dw);
	} else if (RECIP_TIED) {
		k_transpose_grad(RECIP_GRAD(a, coupler), L, dw, F, L, F, latent_up(a));
	} else {
		arch_copy(RECIP_GRAD(a, mlp_down), dw, sizeof(*dw) * N * F);
	}
}

static void latent_chain(const struct joined *j, int row)
{
	zero_grads(j->a);
	if (latent_cols(j->a))
		chain_cols(j, row);
	if (latent_rows(j->a, row))
		chain_rows(j, row);
}

/* ---- direct form, decode ------------------------------------------------------------- */

static void latent_hidden(const struct hidden *s)
{
	const struct mixer_args *a = s->a;
	const struct recip_param *w = a->w;

	if (latent_down(a) && s->c && RECIP_UNTIED) {
		linear_fwd(s->u, s->h, w->mlp_down, s->n, N, F, 1, 0);
		linear_fwd(s->c, s->u, w->mlp_to_attn, s->n, L, N, 1, 0);
	} else if (latent_down(a) && s->c) {
		linear_dx(s->c, s->h, down_matrix(a, s->map), s->n, F, L, 1, 0);
	}
	if (latent_up(a))
		linear_fwd(s->h, a->in[TAP_LATENT], up_matrix(a, s->map), s->n, F, L, alpha_r, 1);
}

static void up_bwd(const struct hidden *s)
{
	const struct mixer_args *a = s->a;

	linear_dw(up_grad(a), NULL, s->dh, a->in[TAP_LATENT], s->n, F, L, alpha_r, 0);
	up_grad_done(a);
	if (a->din[TAP_LATENT])
		linear_dx(a->din[TAP_LATENT], s->dh, up_matrix(a, s->map), s->n, F, L, alpha_r, 0);
}

/* h0 is computed again from pre; the coupler's gradient adds to what A left. */
static void down_bwd(const struct hidden *s)
{
	const struct mixer_args *a = s->a;
	const struct recip_param *w = a->w;
	const struct recip_act *act = a->act;
	struct recip_tmp *tmp = a->tmp;
	const act_t *dc = a->dout[TAP_LATENT_MIX];
	act_t *h0 = (act_t *)tmp->bwd.wide, *du = (act_t *)tmp->bwd.du;
	grad_t *dmap = RECIP_SCALAR ? (grad_t *)tmp->bwd.dmap : RECIP_GRAD(a, coupler);

	k_gelu_fwd(h0, act->pre[0], (size_t)s->n * F);
	if (RECIP_UNTIED) {
		linear_dw(RECIP_GRAD(a, mlp_to_attn), NULL, dc, s->u, s->n, L, N, 1, 0);
		linear_dx(du, dc, w->mlp_to_attn, s->n, L, N, 1, 0);
		linear_dw(RECIP_GRAD(a, mlp_down), NULL, du, h0, s->n, N, F, 1, 0);
		linear_dx(s->dh, du, w->mlp_down, s->n, N, F, 1, 1);
		return;
	}
	linear_dw(dmap, NULL, h0, dc, s->n, F, L, 1, RECIP_TIED && latent_up(a));
	if (RECIP_SCALAR)
		k_couple_grad(&down_factors, RECIP_GRAD(a, mlp_scale), dmap);
	linear_fwd(s->dh, dc, down_matrix(a, s->map), s->n, F, L, 1, 1);
}

static void latent_hidden_bwd(const struct hidden *s)
{
	if (latent_up(s->a))
		up_bwd(s);
	if (latent_down(s->a))
		down_bwd(s);
}

/* ---- operations and metrics ------------------------------------------------------------ */

static void direct_work(struct work *w, const struct joined *j, bool backward)
{
	if (backward) {
		work_product(w, F, L, j->n, 1);
		work_product(w, j->n, L, F, !taps[TAP_LATENT].detached);
	} else {
		work_linear(w, j->n, F, L, false);
	}
	if (!latent_down(j->a))
		return;
	if (RECIP_UNTIED) {
		work_linear(w, j->n, N, F, backward);
		work_linear(w, j->n, L, N, backward);
	} else {
		work_linear(w, j->n, L, F, backward);
	}
}

static void latent_work(struct work *w, const struct joined *j, int row, bool backward)
{
	if (RECIP_DIRECT) {
		direct_work(w, j, backward);
		return;
	}
	if (backward) {
		work_product(w, row, L, j->n, 1);
		work_product(w, F, L, row, 1);
		work_product(w, row, F, L, 1);
		work_product(w, j->n, L, row, !taps[TAP_LATENT].detached);
		work_product(w, row, L, F, !taps[TAP_LATENT].detached);
	} else {
		work_product(w, row, L, F, 1);
	}
	if (RECIP_UNTIED && latent_down(j->a))
		work_linear(w, j->n, L, N, backward);
}

static void latent_work_step(struct work *w, const struct mixer_args *a, int pos)
{
	(void)pos;
	direct_work(w, &(struct joined){ .a = a, .n = 1 }, false);
}

/* What the latent adds to h0, over h0. */
static int latent_metrics(const struct mixer_args *a, struct metric *out)
{
	struct recip_tmp *tmp = a->tmp;
	act_t *h;
	double before;

	if (!latent_up(a))
		return 0;
	h = recip_hidden(a, &recip_latent);
	before = recip_rms(a, h);
	linear_fwd(h, a->in[TAP_LATENT], up_matrix(a, (param_t *)tmp->map), a->b * a->t, F, L,
		   alpha_r, 0);
	out[0] = (struct metric){ "latent_ratio", recip_rms(a, h) / before };
	return 1;
}

const struct recip_part recip_latent = {
	.rows = latent_rows,
	.cols = latent_cols,
	.beside = latent_beside,
	.fill = latent_fill,
	.forward = latent_forward,
	.backward = latent_backward,
	.chain = latent_chain,
	.hidden = latent_hidden,
	.hidden_bwd = latent_hidden_bwd,
	.work = latent_work,
	.work_step = latent_work_step,
	.metrics = RECIP_LOG ? latent_metrics : NULL,
};
