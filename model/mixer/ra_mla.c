// SPDX-License-Identifier: MIT
/*
 * ra_mla - latent attention with a reciprocal term
 *
 * Keys and values are L numbers per position, shared by all heads. Queries are
 * taken into that space and values out of it, so that the attention works on
 * latents and the decode cache holds 2 L numbers per position, never expanded:
 *
 *     k = x k_down^T (+ alpha_r c),  v = x v_down^T           [B,T,L]
 *     q~_h = (x q_proj^T)_h q_to_latent_h                     [B,T,H,L]
 *     s_{t,u} = <q~_t, k_u> / sqrt(L)  (+ alpha_ra / sqrt(L) <q~_u, k_t>, t - u <= W)
 *     w_h = gamma_h softmax(s) v,  y = concat_h(w_h v_up_h) out_proj^T
 *
 * Latent keys and values, absorbed projections: DeepSeek-V2, Liu et al. 2024,
 * arXiv 2405.04434 (there with a rotary part beside the latent, which this one does
 * not have). Reciprocal term and taps: Documentation/ra-mla.md.
 */
#include <assert.h>
#include <math.h>

#include "arch.h"
#include "mixer.h"
#include "util.h"
#include "../linear.h"
#include "../routing.h"

enum {
	Q_HEADS = IS_ENABLED(CONFIG_RA_MLA_PER_HEAD_Q_LATENT) ? H : 0,
	Q_SHARED = Q_HEADS ? 0 : D,
	V_HEADS = IS_ENABLED(CONFIG_RA_MLA_PER_HEAD_V_UP) ? H : 0,
	V_SHARED = V_HEADS ? 0 : L,
	W = CONFIG_RA_MLA_RA_WINDOW,
	ROUTED = ROUTE_ROWS > 0,
	RING = ROUTE_BAND,	/* queries that a decode step looks back at */
};

static_assert(L >= 1, "ra_mla needs CONFIG_RA_MLA_LATENT_DIM of 1 or more");

struct ra_mla_param {
	TENSOR param_t q_proj[C][C];
	TENSOR param_t k_down[L][C];
	TENSOR param_t v_down[L][C];
	TENSOR param_t q_to_latent[Q_HEADS][D][L];	/* per head, or in its place */
	TENSOR param_t q_to_latent_all[Q_SHARED][L];	/* one for all heads */
	TENSOR param_t v_up[V_HEADS][L][D];
	TENSOR param_t v_up_all[V_SHARED][D];
	TENSOR param_t out_proj[C][C];
};

struct ra_mla_act {
	TENSOR act_t q[BT][H][D];
	TENSOR act_t q_latent[BT][H][L];
	TENSOR act_t k[BT][L];
	TENSOR act_t v[BT][L];
	TENSOR act_t w[BT][H][L];	/* gamma sum_u P v_u */
	TENSOR acc_t lse[BT][H];
	TENSOR int32_t index[BT][ROUTE_ROWS][ROUTE_K];	/* struct route */
	TENSOR act_t weight[BT][ROUTE_ROWS][ROUTE_K];
	TENSOR acc_t thr[ROUTE_DENSE * BT][ROUTE_ROWS];
	TENSOR acc_t inv[ROUTE_DENSE * BT][ROUTE_ROWS];
};

union ra_mla_tmp {
	struct {
		TENSOR act_t o[BT][C];
		TENSOR act_t scratch[ROUTE_SCRATCH];
	} fwd;
	struct {
		TENSOR act_t o[BT][C];
		TENSOR act_t d_o[BT][C];	/* later dq */
		TENSOR act_t dw[BT][H][L];
		TENSOR act_t dq_latent[BT][H][L];
		TENSOR act_t dk[BT][L];
		TENSOR act_t dv[BT][L];
		TENSOR acc_t delta[BT][H];
	} bwd;
	struct {
		TENSOR act_t entropy[BT][H];
		TENSOR struct stats stats[3];
	} log;
};

/* decode state of one sequence */
struct ra_mla_cache {
	TENSOR act_t k[T_MAX][L];
	TENSOR act_t v[T_MAX][L];
	TENSOR act_t ring[RING][H][L];	/* q~ of position u in slot u % (W + 1) */
};

struct ra_mla_step_tmp {
	TENSOR act_t q[B_MAX][H][D];
	TENSOR act_t q_latent[B_MAX][H][L];
	TENSOR act_t k[B_MAX][L];
	TENSOR act_t w[B_MAX][H][L];
	TENSOR act_t o[B_MAX][C];
	TENSOR act_t p[ROUTED * B_MAX][H][T_MAX];	/* gamma P */
};

static const struct param ra_mla_params[] = {
	PARAM(struct ra_mla_param, q_proj, "q_proj.weight", INIT_NORMAL, 0, DECAY, C, C),
	PARAM(struct ra_mla_param, k_down, "k_down.weight", INIT_NORMAL, 0, DECAY, L, C),
	PARAM(struct ra_mla_param, v_down, "v_down.weight", INIT_NORMAL, 0, DECAY, L, C),
	PARAM(struct ra_mla_param, q_to_latent, "q_to_latent", INIT_FANIN, D, DECAY,
	      Q_HEADS, D, L),
	PARAM(struct ra_mla_param, q_to_latent_all, "q_to_latent", INIT_FANIN, D, DECAY,
	      Q_SHARED, L),
	PARAM(struct ra_mla_param, v_up, "v_up", INIT_FANIN, L, DECAY, V_HEADS, L, D),
	PARAM(struct ra_mla_param, v_up_all, "v_up", INIT_FANIN, L, DECAY, V_SHARED, D),
	PARAM(struct ra_mla_param, out_proj, "out_proj.weight", INIT_RESIDUAL, 0, DECAY, C, C),
};

/* ---- forward ------------------------------------------------------------- */

static struct attn ra_mla_attn(const struct mixer_args *a)
{
	struct ra_mla_act *act = a->act;

	return (struct attn){
		.b = a->b, .t = a->t, .heads = H, .dk = L, .dv = L,
		.q = act->q_latent[0][0], .q_row = (long)H * L, .q_head = L,
		.k = act->k[0], .k_row = L,
		.v = act->v[0], .v_row = L,
		.o = act->w[0][0], .o_row = (long)H * L, .o_head = L,
		.lse = act->lse[0], .gamma = a->in.head_gate, .scale = 1 / sqrt(L),
		.ra_scale = CONFIG_RA_MLA_RA_ALPHA / sqrt(L), .ra_window = W };
}

/* How a row of attention weights becomes a routing row. */
static void route_rule(struct route *r)
{
	r->nr = ROUTE_ROWS;
	r->mode = ROUTE_MODE;
	r->topk = ROUTE_K;
	r->tau = CONFIG_RA_MLA_MLP_SPARSE_RMS_THRESHOLD;
	r->normalize = IS_ENABLED(CONFIG_RA_MLA_MLP_SPARSE_NORMALIZE);
}

/* TAP_ROUTE: what recomputes gamma P, and the selection made from it. */
static void publish_route(const struct mixer_args *a, const struct attn *at)
{
	struct ra_mla_act *act = a->act;
	union ra_mla_tmp *tmp = a->tmp;
	struct route r = { .a = *at };

	route_rule(&r);
	r.index = ROUTE_K ? act->index[0][0] : NULL;
	r.weight = ROUTE_K ? act->weight[0][0] : NULL;
	r.thr = ROUTE_DENSE ? act->thr[0] : NULL;
	r.inv = ROUTE_DENSE ? act->inv[0] : NULL;
	k_route_build(&r, tmp->fwd.scratch);
	a->out->route = r;
	a->out->has_route = true;
}

/* q, q~, keys with what the MLP before mixes into them, values */
static void ra_mla_project(const struct mixer_args *a)
{
	const struct ra_mla_param *p = a->w;
	struct ra_mla_act *act = a->act;
	const act_t *mix = a->in.latent_mix;
	int n = a->b * a->t;

	linear_fwd(act->q, a->x, p->q_proj, n, C, C, 1, 0);
	heads_fwd(act->q_latent, act->q, p->q_to_latent, Q_HEADS, n, D, L);
	if (mix)
		k_axpby(act->k[0], mix, (size_t)n * L, CONFIG_RA_MLA_MLP_RECIP_ALPHA, 0);
	linear_fwd(act->k, a->x, p->k_down, n, L, C, 1, mix ? 1 : 0);
	linear_fwd(act->v, a->x, p->v_down, n, L, C, 1, 0);
}

static void ra_mla_forward(const struct mixer_args *a)
{
	const struct ra_mla_param *p = a->w;
	struct ra_mla_act *act = a->act;
	union ra_mla_tmp *tmp = a->tmp;
	struct attn at = ra_mla_attn(a);
	int n = a->b * a->t;

	ra_mla_project(a);
	k_attn_fwd(&at);
	heads_fwd(tmp->fwd.o, act->w, p->v_up, V_HEADS, n, L, D);
	linear_fwd(a->y, tmp->fwd.o, p->out_proj, n, C, C, 1, 0);
	if (a->read & TAP_LATENT)
		a->out->latent = act->k[0];
	if (a->read & TAP_ROUTE)
		publish_route(a, &at);
}

/* ---- backward ------------------------------------------------------------ */

/* dy to the gradient of w; o is cheaper to compute again than to keep. */
static void ra_mla_bwd_out(const struct mixer_args *a)
{
	const struct ra_mla_param *p = a->w;
	const struct ra_mla_act *act = a->act;
	union ra_mla_tmp *tmp = a->tmp;
	int n = a->b * a->t;
	const act_t *w = act->w[0][0];
	act_t *d_o = tmp->bwd.d_o[0];

	heads_fwd(tmp->bwd.o, w, p->v_up, V_HEADS, n, L, D);
	linear_dw(GRAD(a->dw, struct ra_mla_param, out_proj), a->dy, tmp->bwd.o, n, C, C, 1, 0);
	linear_dx(d_o, a->dy, p->out_proj, n, C, C, 1, 0);
	heads_dw(GRAD(a->dw, struct ra_mla_param, v_up), d_o, w, V_HEADS, n, L, D);
	heads_dx(tmp->bwd.dw, d_o, p->v_up, V_HEADS, n, L, D);
}

/* Gradients of q~, k and v, and of the taps that came in. */
static void ra_mla_bwd_attn(const struct mixer_args *a)
{
	struct attn at = ra_mla_attn(a);
	union ra_mla_tmp *tmp = a->tmp;
	size_t nk = (size_t)a->b * a->t * L;
	act_t *dk = tmp->bwd.dk[0];

	k_attn_bwd(&at, tmp->bwd.dq_latent[0][0], dk, tmp->bwd.dv[0], a->din.head_gate,
		   tmp->bwd.dw[0][0], tmp->bwd.delta[0]);
	if (a->dout.latent)
		k_axpby(dk, a->dout.latent, nk, 1, 1);
	if (a->din.latent_mix)
		k_axpby(a->din.latent_mix, dk, nk, CONFIG_RA_MLA_MLP_RECIP_ALPHA, 0);
}

/* Projections of x. */
static void ra_mla_bwd_project(const struct mixer_args *a)
{
	const struct ra_mla_param *p = a->w;
	const struct ra_mla_act *act = a->act;
	union ra_mla_tmp *tmp = a->tmp;
	int n = a->b * a->t;
	act_t *dq_latent = tmp->bwd.dq_latent[0][0], *dq = tmp->bwd.d_o[0];
	act_t *dk = tmp->bwd.dk[0], *dv = tmp->bwd.dv[0];

	heads_dw(GRAD(a->dw, struct ra_mla_param, q_to_latent), dq_latent, act->q, Q_HEADS,
		 n, D, L);
	heads_dx(dq, dq_latent, p->q_to_latent, Q_HEADS, n, D, L);
	linear_dw(GRAD(a->dw, struct ra_mla_param, q_proj), dq, a->x, n, C, C, 1, 0);
	linear_dw(GRAD(a->dw, struct ra_mla_param, k_down), dk, a->x, n, L, C, 1, 0);
	linear_dw(GRAD(a->dw, struct ra_mla_param, v_down), dv, a->x, n, L, C, 1, 0);
	linear_dx(a->dx, dq, p->q_proj, n, C, C, 1, 0);
	linear_dx(a->dx, dk, p->k_down, n, L, C, 1, 1);
	linear_dx(a->dx, dv, p->v_down, n, L, C, 1, 1);
}

static void ra_mla_backward(const struct mixer_args *a)
{
	ra_mla_bwd_out(a);
	ra_mla_bwd_attn(a);
	ra_mla_bwd_project(a);
}

/* ---- step ---------------------------------------------------------------- */

enum { CACHE_STRIDE = sizeof(struct ra_mla_cache) / sizeof(act_t) };

/* One row of each sequence into its cache. */
static void cache_rows(act_t *dst, const act_t *src, int b, int width)
{
	for (int i = 0; i < b; i++)
		arch_copy(dst + (size_t)i * CACHE_STRIDE, src + (size_t)i * width,
			  sizeof(*src) * width);
}

/* k, v and, with the reciprocal term, q~ of this token into the caches */
static void step_append(const struct mixer_args *a, struct ra_mla_cache *cache, int pos)
{
	const struct ra_mla_param *p = a->w;
	struct ra_mla_step_tmp *tmp = a->tmp;
	const act_t *mix = a->in.latent_mix;
	act_t *k = a->read & TAP_LATENT ? (act_t *)a->out->latent : tmp->k[0];

	if (mix)
		k_axpby(k, mix, (size_t)a->b * L, CONFIG_RA_MLA_MLP_RECIP_ALPHA, 0);
	linear_fwd(k, a->x, p->k_down, a->b, L, C, 1, mix ? 1 : 0);
	cache_rows(cache->k[pos], k, a->b, L);
	k_gemm(&(struct gemm){
		.m = a->b, .n = L, .k = C, .tb = true, .a = a->x, .lda = C, .b = p->v_down,
		.ldb = C, .c = cache->v[pos], .ldc = CACHE_STRIDE, .alpha = 1 });
	if (RING)
		cache_rows(cache->ring[pos % MAX(RING, 1)][0], tmp->q_latent[0][0], a->b, H * L);
}

static void step_attn(const struct mixer_args *a, const struct ra_mla_cache *cache, int pos)
{
	struct ra_mla_step_tmp *tmp = a->tmp;
	bool routed = a->read & TAP_ROUTE;

	k_attn_step(&(struct attn_step){
		.b = a->b, .heads = H, .dk = L, .dv = L, .pos = pos,
		.q = tmp->q_latent[0][0], .k = cache->k[0], .k_row = L, .v = cache->v[0],
		.v_row = L, .cache_stride = CACHE_STRIDE, .o = tmp->w[0][0],
		.gamma = a->in.head_gate, .scale = 1 / sqrt(L),
		.ra_scale = CONFIG_RA_MLA_RA_ALPHA / sqrt(L), .ra_window = W,
		.ring = RING ? cache->ring[0][0] : NULL,
		.route = routed ? tmp->p[0][0] : NULL, .route_stride = T_MAX });
	if (!routed)
		return;
	route_rule(&a->out->route);
	a->out->route.row_stride = T_MAX;
	k_route_step(&a->out->route, tmp->p[0][0], T_MAX, a->b, H, pos);
	a->out->has_route = true;
}

static void ra_mla_step(const struct mixer_args *a, void *cache, int pos)
{
	const struct ra_mla_param *p = a->w;
	struct ra_mla_step_tmp *tmp = a->tmp;

	linear_fwd(tmp->q, a->x, p->q_proj, a->b, C, C, 1, 0);
	heads_fwd(tmp->q_latent, tmp->q, p->q_to_latent, Q_HEADS, a->b, D, L);
	step_append(a, cache, pos);
	step_attn(a, cache, pos);
	heads_fwd(tmp->o, tmp->w, p->v_up, V_HEADS, a->b, L, D);
	linear_fwd(a->y, tmp->o, p->out_proj, a->b, C, C, 1, 0);
}

/* ---- metrics --------------------------------------------------------------- */

/* Mean entropy of the heads' rows; what the MLP's mix is of the keys it went into. */
static int ra_mla_metrics(const struct mixer_args *a, struct metric *out)
{
	struct attn at = ra_mla_attn(a);
	union ra_mla_tmp *tmp = a->tmp;
	const struct ra_mla_act *act = a->act;
	size_t n = (size_t)a->b * a->t;
	const act_t *mix = a->in.latent_mix;
	struct stats s[3];

	k_attn_entropy(&at, tmp->log.entropy[0]);
	k_stats(&tmp->log.stats[0], tmp->log.entropy[0], n * H);
	k_stats(&tmp->log.stats[1], act->k[0], n * L);
	k_stats(&tmp->log.stats[2], mix ? mix : act->k[0], n * L);
	arch_get(s, tmp->log.stats, sizeof(s));
	out[0] = (struct metric){ "attn_entropy", s[0].mean };
	out[1] = (struct metric){ "key_mix_ratio",
				  CONFIG_RA_MLA_MLP_RECIP_ALPHA * s[2].rms / s[1].rms };
	return mix ? 2 : 1;
}

static struct cache_size ra_mla_cache_size(unsigned int read)
{
	(void)read;
	return (struct cache_size){ sizeof(struct ra_mla_cache), sizeof(act_t) * 2 * L };
}

/* ---- operations ---------------------------------------------------------- */

/* Scores and values; the routing computes the scores once more. */
static double ra_mla_flops(int b, int t, unsigned int read)
{
	double n = (double)b * t;

	return linear_flops(n, C, 2 * C + 4 * L) + linear_flops(causal_pairs(b, t, t), H, L) +
	       score_flops(b, t) * (read & TAP_ROUTE ? 2 : 1);
}

/* Products of the projections twice, o again; scores, their dq and dk, dP and dv. */
static double ra_mla_flops_bwd(int b, int t, unsigned int read)
{
	double n = (double)b * t;

	(void)read;
	return linear_flops(n, C, 4 * C + 9 * L) + 2 * linear_flops(causal_pairs(b, t, t), H, L) +
	       3 * score_flops(b, t);
}

static const struct mixer ra_mla = {
	.name = "ra_mla",
	.role = ROLE_ATTN,
	.params = ra_mla_params,
	.nr_params = ARRAY_SIZE(ra_mla_params),
	.param_size = sizeof(struct ra_mla_param),
	.act_size = sizeof(struct ra_mla_act),
	.tmp_size = sizeof(union ra_mla_tmp),
	.step_tmp_size = sizeof(struct ra_mla_step_tmp),
	.cache = ra_mla_cache_size,
	.taps_read = (IS_ENABLED(CONFIG_RA_MLA_MLP_ATTN_GATE) ? TAP_HEAD_GATE : 0) |
		     (IS_ENABLED(CONFIG_RA_MLA_MLP_LATENT_RECIP) ? TAP_LATENT_MIX : 0),
	.taps_written = (ROUTED ? TAP_ROUTE : 0) |
			(IS_ENABLED(CONFIG_RA_MLA_MLP_LATENT_RECIP) ? TAP_LATENT : 0),
	.flops = ra_mla_flops,
	.flops_bwd = ra_mla_flops_bwd,
	.forward = ra_mla_forward,
	.backward = ra_mla_backward,
	.step = ra_mla_step,
	.metrics = IS_ENABLED(CONFIG_RA_MLA_LOG_METRICS) ? ra_mla_metrics : NULL,
};
MIXER_REGISTER(ra_mla);
