// SPDX-License-Identifier: MIT
/*
 * Mechanism 2 of recip, cross-token aggregation: hidden layers of earlier positions,
 * mixed by the routing R^ of the same layer's attention (detached):
 *
 *     h += alpha_c (R^ h) cross_proj^T
 *
 * Its rows of the joined matrix are W = O cross_proj, O being all rows above: they give y,
 * and what O gives gets alpha_c R^ y. Neither R^ h nor the mixed h exists then; where
 * heads route apart, both do (direct form). Documentation/cross-token.md.
 */
#include "recip.h"
#include "util.h"

static const double alpha_c = CONFIG_RA_MLA_MLP_CROSS_ALPHA;

static bool cross_on(const struct mixer_args *a)
{
	return a->in[TAP_ROUTE];
}

/* ---- joined ------------------------------------------------------------------------ */

static int cross_rows(const struct mixer_args *a, int above)
{
	return !RECIP_DIRECT && cross_on(a) ? above : 0;
}

static bool cross_joined(const struct joined *j)
{
	return cross_rows(j->a, 1);
}

/* W */
static void cross_fill(const struct joined *j, int row)
{
	const struct recip_param *w = j->a->w;

	if (cross_joined(j))
		k_gemm(&(struct gemm){
			.m = row, .n = F, .k = F, .a = j->w, .lda = COLS, .b = w->cross_proj,
			.ldb = F, .c = joined_row(j, row), .ldc = COLS, .alpha = 1 });
}

/* Outputs of O: c_proj's columns, and those kept wide. */
static struct route_rows outputs_of(act_t *y, long ldy, acc_t *z, int row)
{
	return (struct route_rows){ .x = y, .ld = ldy, .width = C, .wide = row > C ? z : NULL,
				    .wide_ld = G, .wide_width = row - C };
}

static void cross_forward(const struct joined *j, int row)
{
	const struct mixer_args *a = j->a;
	struct recip_act *act = a->act;
	struct recip_tmp *tmp = a->tmp;
	struct route_rows out = outputs_of(a->y, C, (acc_t *)act->z, row);

	if (cross_joined(j))
		k_route_gather_fwd(a->in[TAP_ROUTE], &out, j->y + row, j->ldy, row, alpha_c, 1,
				   tmp->route);
}

static void cross_backward(const struct joined *j, int row)
{
	const struct mixer_args *a = j->a;
	struct recip_tmp *tmp = a->tmp;
	struct route_rows d = outputs_of(joined_dy(j, 0), j->ldy, (acc_t *)tmp->bwd.dz, row);

	if (cross_joined(j))
		k_route_gather_bwd(a->in[TAP_ROUTE], joined_dy(j, row), j->ldy, &d, row, alpha_c,
				   0, tmp->route);
}

/* W = O cross_proj: d cross_proj = O^T dW, dO += dW cross_proj^T */
static void cross_chain(const struct joined *j, int row)
{
	const struct mixer_args *a = j->a;
	const struct recip_param *w = a->w;
	struct recip_tmp *tmp = a->tmp;
	param_t *dw = (param_t *)tmp->bwd.dw_cross;

	if (!cross_on(a))
		RECIP_ZERO_GRAD(a, cross_proj);
	if (!cross_joined(j))
		return;
	k_cast(dw, j->dw + (size_t)row * F, (size_t)row * F);
	k_gemm_grad(&(struct gemm){
		.m = F, .n = F, .k = row, .ta = true, .a = j->w, .lda = COLS, .b = dw, .ldb = F,
		.c = RECIP_GRAD(a, cross_proj), .ldc = F, .alpha = 1 });
	k_gemm_grad(&(struct gemm){
		.m = row, .n = F, .k = F, .tb = true, .a = dw, .lda = F, .b = w->cross_proj,
		.ldb = F, .c = j->dw, .ldc = F, .alpha = 1, .beta = 1 });
}

/* ---- direct ------------------------------------------------------------------------- */

static void mix_fwd(const struct hidden *s)
{
	const struct recip_param *w = s->a->w;
	struct recip_tmp *tmp = s->a->tmp;
	struct route_rows mixed = { .x = s->mixed, .ld = F, .width = F };

	k_route_gather_fwd(s->a->in[TAP_ROUTE], &mixed, s->h, F, F, 1, 0, tmp->route);
	linear_fwd(s->h, s->mixed, w->cross_proj, s->n, F, F, alpha_c, 1);
}

static void cross_hidden_bwd(const struct hidden *s)
{
	const struct mixer_args *a = s->a;
	const struct recip_param *w = a->w;
	struct recip_tmp *tmp = a->tmp;
	act_t *dmixed = (act_t *)tmp->bwd.wide;
	struct route_rows d = { .x = dmixed, .ld = F, .width = F };

	if (!RECIP_DIRECT || !cross_on(a))
		return;
	linear_dw(RECIP_GRAD(a, cross_proj), NULL, s->dh, s->mixed, s->n, F, F, alpha_c, 0);
	linear_dx(dmixed, s->dh, w->cross_proj, s->n, F, F, alpha_c, 0);
	k_route_gather_bwd(a->in[TAP_ROUTE], s->dh, F, &d, F, 1, 1, tmp->route);
}

/* ---- decode ---------------------------------------------------------------------------- */

/* What is cached of a position: y where heads are averaged, else h before the mix. */
static int past_width(const struct mixer_args *a)
{
	bool gate = RECIP_GATE && (a->has & TAP_BIT(HEAD_GATE));

	return !RECIP_AVERAGE ? F : gate ? OUT : C;
}

static struct cache_rows past_rows(const struct mixer_args *a, struct recip_cache *cache)
{
	bool gate = RECIP_GATE && (a->has & TAP_BIT(HEAD_GATE));
	int width = past_width(a);
	size_t seq = gate ? sizeof(struct recip_cache) : sizeof(struct recip_cache_ungated);

	return (struct cache_rows){ .base = (act_t *)cache->past, .seq = seq / sizeof(act_t),
				    .row = width, .width = width };
}

/* In step the tap is one dense row for each row set. */
static struct route_step step_route(const struct hidden *s)
{
	return (struct route_step){ ROUTE_RULE, .b = s->n, .pos = s->pos,
				    .row = (acc_t *)s->a->in[TAP_ROUTE], .row_stride = T_MAX };
}

/* h is appended before the mix, so this position takes part. */
static void mix_step(const struct hidden *s)
{
	const struct recip_param *w = s->a->w;
	struct cache_rows past = past_rows(s->a, s->cache);
	struct route_step r = step_route(s);
	struct route_rows mixed = { .x = s->mixed, .ld = F, .width = F };

	k_cache_put(&past, s->h, F, s->pos, s->n);
	k_route_gather_step(&r, &mixed, &past, 1, 0);
	linear_fwd(s->h, s->mixed, w->cross_proj, s->n, F, F, alpha_c, 1);
}

static void cross_hidden(const struct hidden *s)
{
	if (!cross_on(s->a))
		return;
	if (s->pos && !RECIP_AVERAGE)
		mix_step(s);
	else if (!s->pos && RECIP_DIRECT)
		mix_fwd(s);
}

/* y of this token through both matrices, then what its outputs get from the past. */
static void cross_step(const struct hidden *s)
{
	const struct mixer_args *a = s->a;
	const struct recip_param *w = a->w;
	struct recip_step_tmp *tmp = a->tmp;
	struct cache_rows past = past_rows(a, s->cache);
	struct route_rows out = outputs_of(a->y, C, (acc_t *)tmp->z, past.width);
	struct route_step r = step_route(s);
	act_t *y = (act_t *)tmp->y;

	if (!RECIP_AVERAGE || !cross_on(a))
		return;
	linear_fwd(s->mixed, s->h, w->cross_proj, s->n, F, F, 1, 0);
	k_gemm(&(struct gemm){
		.m = s->n, .n = C, .k = F, .tb = true, .a = s->mixed, .lda = F, .b = w->c_proj,
		.ldb = F, .c = y, .ldc = past.width, .alpha = 1 });
	if (past.width > C)
		k_gemm(&(struct gemm){
			.m = s->n, .n = G, .k = F, .tb = true, .a = s->mixed, .lda = F,
			.b = w->gate_proj, .ldb = F, .c = y + C, .ldc = past.width, .alpha = 1 });
	k_cache_put(&past, y, past.width, s->pos, s->n);
	k_route_gather_step(&r, &out, &past, alpha_c, 1);
}

static void cross_fill_cache(const struct joined *j, int row, struct recip_cache *cache,
			     const int32_t *len)
{
	const struct mixer_args *a = j->a;
	struct cache_rows past = past_rows(a, cache);

	if (!cross_on(a))
		return;
	if (RECIP_DIRECT)
		k_cache_fill(&past, recip_hidden(a, &recip_cross), F, len, a->b, a->t);
	else
		k_cache_fill(&past, j->y + row, j->ldy, len, a->b, a->t);
}

/* ---- operations and metrics ---------------------------------------------------------------- */

/*
 * One gather: the listed entries (topk), or every visible entry and the scores of all
 * heads once more (none, rms).
 */
static void work_gather(struct work *w, const struct mixer_args *a, int width)
{
	if (ROUTE_MODE != ROUTE_TOPK)
		work_scores(w, a->b, a->t, 1);
	work_pairs(w, causal_pairs(a->b, a->t, ROUTE_MODE == ROUTE_TOPK ? ROUTE_K : a->t), width);
}

static void cross_work(struct work *w, const struct joined *j, int row, bool backward)
{
	work_gather(w, j->a, RECIP_DIRECT ? F : row);
	if (RECIP_DIRECT) {
		work_linear(w, j->n, F, F, backward);
		return;
	}
	if (backward)
		work_product(w, F, F, row, 1);
	work_product(w, row, F, F, 1);
}

static void cross_work_step(struct work *w, const struct mixer_args *a, int pos)
{
	int width = past_width(a);

	work_linear(w, 1, F, F, false);
	if (RECIP_AVERAGE)
		work_linear(w, 1, width, F, false);
	work_pairs(w, ROUTE_MODE == ROUTE_TOPK ? MIN((int)ROUTE_K, pos + 1) : pos + 1, width);
}

/* What the mix adds to h, over h before it. */
static int cross_metrics(const struct mixer_args *a, struct metric *out)
{
	const struct recip_param *w = a->w;
	struct recip_tmp *tmp = a->tmp;
	act_t *h, *part = (act_t *)tmp->log.part;
	struct route_rows mixed = { .x = part, .ld = F, .width = F };
	double before;

	if (!cross_on(a))
		return 0;
	h = recip_hidden(a, &recip_cross);
	before = recip_rms(a, h);
	k_route_gather_fwd(a->in[TAP_ROUTE], &mixed, h, F, F, 1, 0, tmp->route);
	linear_fwd(h, part, w->cross_proj, a->b * a->t, F, F, alpha_c, 0);
	out[0] = (struct metric){ "cross_ratio", recip_rms(a, h) / before };
	return 1;
}

const struct recip_part recip_cross = {
	.rows = cross_rows,
	.fill = cross_fill,
	.forward = cross_forward,
	.backward = cross_backward,
	.chain = cross_chain,
	.hidden = cross_hidden,
	.hidden_bwd = cross_hidden_bwd,
	.step = cross_step,
	.fill_cache = cross_fill_cache,
	.work = cross_work,
	.work_step = cross_work_step,
	.metrics = RECIP_LOG ? cross_metrics : NULL,
};
