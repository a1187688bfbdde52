// SPDX-License-Identifier: MIT
/*
 * recip - GPT-2's MLP with three mechanisms that talk back to attention
 *
 *     h = GELU(c_fc x)
 *     h += alpha_r A(latent)                   3: recip_latent.c
 *     h += alpha_c (R^ h) cross_proj^T         2: recip_cross.c
 *     gate of the next attention's heads(h)    1: recip_gate.c
 *     y = c_proj h
 *
 * With every mechanism off it is mlp: same tensors, same kernels, same bits.
 * Documentation/gate.md, cross-token.md, latent-reciprocity.md.
 */
#include "arch.h"
#include "recip.h"
#include "util.h"

struct recip_act {
	TENSOR act_t pre[BT][F];
	TENSOR act_t h[BT][F];			/* as c_proj reads it */
	TENSOR act_t mixed[RECIP_DIRECT * BT][F];
	TENSOR act_t fold[RECIP_FOLDED * (C + G)][F];
	TENSOR act_t z[RECIP_GATE * BT][G];	/* pooled */
	TENSOR act_t gamma[RECIP_GATE * BT][H];
	TENSOR act_t u[BT][N];
	TENSOR act_t latent_mix[RECIP_LATENT * BT][L];
};

struct recip_tmp {
	TENSOR act_t scratch[ROUTE_SCRATCH];
	TENSOR act_t routed[RECIP_FOLDED * BT][C + G];
	/* backward alone */
	TENSOR act_t dh[BT][F];
	TENSOR act_t wide[(RECIP_DIRECT || RECIP_LATENT || RECIP_LOG) * BT][F];
	TENSOR act_t dfold[RECIP_FOLDED * (C + G)][F];
	TENSOR act_t dz[RECIP_GATE * BT][G];
	TENSOR act_t dlogit[RECIP_GATE * BT][H];
	TENSOR act_t du[BT][N];
	TENSOR struct stats stats[2];
};

/* decode state of one sequence where the gate is read */
struct recip_cache {
	/* heads averaged: outputs of each position; apart: hidden layers before the mix */
	TENSOR act_t past[RECIP_CROSS * T_MAX][RECIP_AVERAGE ? C + G : F];
	TENSOR act_t z_sum[RECIP_CAUSAL * G];
};

/* and where it is not: the same beginning, narrower rows */
struct recip_cache_ungated {
	TENSOR act_t past[RECIP_CROSS * T_MAX][RECIP_AVERAGE ? C : F];
};

struct recip_step_tmp {
	TENSOR act_t pre[B_MAX][F];
	TENSOR act_t h[B_MAX][F];
	TENSOR act_t mixed[RECIP_CROSS * B_MAX][F];
	TENSOR act_t z[RECIP_GATE * B_MAX][G];
	TENSOR act_t u[B_MAX][N];
};

static const struct param recip_params[] = {
	PARAM(struct recip_param, c_fc, "c_fc.weight", INIT_NORMAL, 0, DECAY, F, C),
	PARAM(struct recip_param, c_fc_bias, "c_fc.bias", INIT_ZERO, 0, NO_DECAY, F),
	PARAM(struct recip_param, c_proj, "c_proj.weight", INIT_RESIDUAL, 0, DECAY, C, F),
	PARAM(struct recip_param, c_proj_bias, "c_proj.bias", INIT_ZERO, 0, NO_DECAY, C),
	PARAM(struct recip_param, cross_proj, "cross_proj.weight", INIT_NORMAL, 0, DECAY,
	      RECIP_CROSS * F, F),
	PARAM(struct recip_param, coupler, "coupler", INIT_NORMAL, 0, DECAY, RECIP_TIED * F, L),
	PARAM(struct recip_param, attn_to_mlp, "attn_to_mlp.weight", INIT_NORMAL, 0, DECAY,
	      RECIP_UNTIED * F, L),
	PARAM(struct recip_param, attn_scale, "attn_scale", INIT_ONE, 0, NO_DECAY,
	      RECIP_SCALAR * H),
	PARAM_IF_READ(struct recip_param, gate_proj, "gate_proj.weight", INIT_NORMAL, 0, DECAY,
		      TAP_HEAD_GATE, G, F),
	PARAM_IF_READ(struct recip_param, gate_to_heads, "gate_to_heads.weight", INIT_NORMAL, 0,
		      DECAY, TAP_HEAD_GATE, RECIP_GATE * H, G),
	PARAM_IF_READ(struct recip_param, mlp_down, "mlp_down.weight", INIT_NORMAL, 0, DECAY,
		      TAP_LATENT_MIX, N, F),
	PARAM_IF_READ(struct recip_param, mlp_to_attn, "mlp_to_attn.weight", INIT_NORMAL, 0,
		      DECAY, TAP_LATENT_MIX, RECIP_UNTIED * L, N),
	PARAM_IF_READ(struct recip_param, mlp_scale, "mlp_scale", INIT_ONE, 0, NO_DECAY,
		      TAP_LATENT_MIX, RECIP_SCALAR * H),
};

/* ---- the MLP itself -------------------------------------------------------- */

/* pre = x c_fc^T + bias, h = h0 = gelu(pre) */
static void fc_fwd(const struct recip *r)
{
	linear_gelu_fwd(r->h, r->pre, r->a->x, r->w->c_fc, r->w->c_fc_bias, r->rows, F, C);
}

/* dh holds the gradient of pre */
static void fc_bwd(const struct recip *r)
{
	linear_dw(RECIP_GRAD(r, c_fc), r->dh, r->a->x, r->rows, F, C, 1, 0);
	k_bias_grad(RECIP_GRAD(r, c_fc_bias), r->dh, r->rows, F);
	linear_dx(r->a->dx, r->dh, r->w->c_fc, r->rows, F, C, 1, 0);
}

void recip_proj_fwd(const struct recip *r)
{
	const struct recip_param *w = r->w;

	linear_bias_fwd(r->a->y, C, r->h, w->c_proj, w->c_proj_bias, r->rows, C, F);
	if (r->gate)
		k_gemm(&(struct gemm){
			.m = r->rows, .n = G, .k = F, .tb = true, .a = r->h, .lda = F,
			.b = w->gate_proj, .ldb = F, .c = r->z, .ldc = r->ldz, .alpha = 1,
			.beta = r->z_beta });
}

/* Whether h is h0 and c_proj alone reads it: then gelu' rides on the product. */
static bool is_mlp(const struct recip *r)
{
	return !r->gate && !r->cross && !r->up && !r->down;
}

void recip_proj_bwd(const struct recip *r)
{
	const struct recip_param *w = r->w;
	const act_t *dy = r->a->dy;

	linear_dw(RECIP_GRAD(r, c_proj), dy, r->h, r->rows, C, F, 1, 0);
	k_bias_grad(RECIP_GRAD(r, c_proj_bias), dy, r->rows, C);
	if (is_mlp(r))
		linear_dgelu(r->dh, r->pre, dy, w->c_proj, r->rows, C, F);
	else
		linear_dx(r->dh, dy, w->c_proj, r->rows, C, F, 1, 0);
	if (!r->gate)
		return;
	linear_dw(RECIP_GRAD(r, gate_proj), r->dz, r->h, r->rows, G, F, 1, 0);
	linear_dx(r->dh, r->dz, w->gate_proj, r->rows, G, F, 1, 1);
}

/* ---- forward and backward --------------------------------------------------- */

/* A tensor's data; it may have no rows. */
#define DATA(tensor) ((act_t *)(tensor))

static struct recip recip_call(const struct mixer_args *a)
{
	struct recip_act *act = a->act;
	struct recip_tmp *tmp = a->tmp;

	return (struct recip){
		.a = a, .w = a->w, .rows = a->b * a->t,
		.gate = RECIP_GATE && (a->read & TAP_HEAD_GATE),
		.cross = RECIP_CROSS && a->in.has_route,
		.up = RECIP_LATENT && a->in.latent,
		.down = RECIP_LATENT && (a->read & TAP_LATENT_MIX),
		.pre = DATA(act->pre), .h = DATA(act->h), .u = DATA(act->u),
		.latent_mix = DATA(act->latent_mix), .mixed = DATA(act->mixed),
		.fold = DATA(act->fold), .routed = DATA(tmp->routed), .z = DATA(act->z),
		.ldz = G, .gamma = DATA(act->gamma), .dh = DATA(tmp->dh), .dz = DATA(tmp->dz),
		.dlogit = DATA(tmp->dlogit), .du = DATA(tmp->du), .dfold = DATA(tmp->dfold),
		.wide = DATA(tmp->wide), .scratch = tmp->scratch, .stats = tmp->stats };
}

static void recip_forward(const struct mixer_args *a)
{
	struct recip r = recip_call(a);

	fc_fwd(&r);
	recip_latent_fwd(&r);
	if (RECIP_DIRECT && r.cross)
		recip_mix_fwd(&r);
	recip_proj_fwd(&r);
	if (RECIP_FOLDED && r.cross)
		recip_fold_fwd(&r);
	if (r.gate)
		recip_gate_fwd(&r);
}

static void recip_zero_grads(const struct recip *r)
{
	if (!r->cross)
		RECIP_ZERO_GRAD(r, cross_proj);
	if (r->gate || !(r->a->read & TAP_HEAD_GATE))
		return;
	RECIP_ZERO_GRAD(r, gate_proj);
	RECIP_ZERO_GRAD(r, gate_to_heads);
}

static void recip_backward(const struct mixer_args *a)
{
	struct recip r = recip_call(a);

	r.gate = r.gate && a->dout.head_gate;
	r.down = r.down && a->dout.latent_mix;
	recip_zero_grads(&r);
	if (r.gate)
		recip_gate_bwd(&r);
	recip_proj_bwd(&r);
	if (RECIP_FOLDED && r.cross)
		recip_fold_bwd(&r);
	if (RECIP_DIRECT && r.cross)
		recip_mix_bwd(&r);
	recip_latent_bwd(&r);
	if (!is_mlp(&r))
		k_gelu_bwd(r.dh, r.pre, r.dh, (size_t)r.rows * F);
	fc_bwd(&r);
}

/* ---- step ------------------------------------------------------------------- */

static struct cache_size recip_cache_size(unsigned int read)
{
	if (RECIP_GATE && (read & TAP_HEAD_GATE))
		return (struct cache_size){ sizeof(struct recip_cache),
					    sizeof(((struct recip_cache *)0)->past) / T_MAX };
	return (struct cache_size){ sizeof(struct recip_cache_ungated),
				    sizeof(((struct recip_cache_ungated *)0)->past) / T_MAX };
}

static const char leak[] = "CONFIG_RA_MLA_MLP_GATE_POOL=\"sequence\" leaks the future, so this model cannot decode; train with \"causal\" or \"token\"";

/* z of the causal pool is added up in the cache itself. */
static struct recip recip_step_call(const struct mixer_args *a, struct recip_cache *cache, int pos)
{
	struct recip_step_tmp *tmp = a->tmp;

	return (struct recip){
		.a = a, .w = a->w, .rows = a->b,
		.gate = RECIP_GATE && (a->read & TAP_HEAD_GATE),
		.cross = RECIP_CROSS && a->in.has_route,
		.up = RECIP_LATENT && a->in.latent,
		.down = RECIP_LATENT && (a->read & TAP_LATENT_MIX),
		.pre = DATA(tmp->pre), .h = DATA(tmp->h), .u = DATA(tmp->u),
		.mixed = DATA(tmp->mixed),
		.latent_mix = (act_t *)a->out->latent_mix,
		.gamma = (act_t *)a->out->head_gate,
		.z = RECIP_CAUSAL ? cache->z_sum : DATA(tmp->z),
		.ldz = RECIP_CAUSAL ? sizeof(*cache) / sizeof(act_t) : G,
		.z_beta = RECIP_CAUSAL && pos > 0 };
}

static void recip_step(const struct mixer_args *a, void *cache, int pos)
{
	struct recip r = recip_step_call(a, cache, pos);
	long seq = recip_cache_size(a->read).size / sizeof(act_t);

	if (RECIP_SEQUENCE)
		die("%s", leak);
	fc_fwd(&r);
	recip_latent_fwd(&r);
	if (!RECIP_AVERAGE && r.cross)
		recip_mix_step(&r, cache, seq, pos);
	recip_proj_fwd(&r);
	if (RECIP_AVERAGE && r.cross)
		recip_fold_step(&r, cache, seq, pos);
	if (r.gate)
		recip_gate_step(&r, pos);
}

/* ---- metrics ------------------------------------------------------------------ */

double recip_ratio(const struct recip *r, const act_t *part, const act_t *whole)
{
	size_t n = (size_t)r->rows * F;
	struct stats s[2];

	k_stats(&r->stats[0], part, n);
	k_stats(&r->stats[1], whole, n);
	arch_get(s, r->stats, sizeof(s));
	return s[0].rms / s[1].rms;
}

/* Needs RA_MLA_LOG_METRICS for its buffers. */
static int recip_metrics(const struct mixer_args *a, struct metric *out)
{
	struct recip r = recip_call(a);
	struct stats s;
	int n = 0;

	if (r.gate) {
		k_stats(r.stats, r.gamma, (size_t)r.rows * H);
		arch_get(&s, r.stats, sizeof(s));
		out[n++] = (struct metric){ "gate_mean", s.mean };
		out[n++] = (struct metric){ "gate_min", s.min };
		out[n++] = (struct metric){ "gate_max", s.max };
	}
	if (r.cross)
		out[n++] = (struct metric){ "cross_ratio", recip_cross_ratio(&r) };
	if (r.up)
		out[n++] = (struct metric){ "latent_ratio", recip_latent_ratio(&r) };
	return n;
}

/* ---- operations -------------------------------------------------------------- */

static double recip_flops(int b, int t, unsigned int read)
{
	bool gate = RECIP_GATE && (read & TAP_HEAD_GATE);

	return 2 * linear_flops((double)b * t, F, C) +
	       (gate ? recip_gate_flops(b, t) : 0) +
	       (RECIP_CROSS ? recip_cross_flops(b, t, gate) : 0) +
	       (RECIP_LATENT ? recip_latent_flops(b, t, read & TAP_LATENT_MIX) : 0);
}

static double recip_flops_bwd(int b, int t, unsigned int read)
{
	bool gate = RECIP_GATE && (read & TAP_HEAD_GATE);

	return 4 * linear_flops((double)b * t, F, C) +
	       (gate ? recip_gate_flops_bwd(b, t) : 0) +
	       (RECIP_CROSS ? recip_cross_flops_bwd(b, t, gate) : 0) +
	       (RECIP_LATENT ? recip_latent_flops_bwd(b, t, read & TAP_LATENT_MIX) : 0);
}

static const struct mixer recip = {
	.name = "recip",
	.role = ROLE_MLP,
	.params = recip_params,
	.nr_params = ARRAY_SIZE(recip_params),
	.param_size = sizeof(struct recip_param),
	.act_size = sizeof(struct recip_act),
	.tmp_size = sizeof(struct recip_tmp),
	.step_tmp_size = sizeof(struct recip_step_tmp),
	.form = RECIP_FOLDED ? "folded" : RECIP_CROSS ? "direct" : NULL,
	.leaks = RECIP_SEQUENCE ? leak : NULL,
	.cache = recip_cache_size,
	.taps_read = (RECIP_CROSS ? TAP_ROUTE : 0) | (RECIP_LATENT ? TAP_LATENT : 0),
	.taps_written = (RECIP_GATE ? TAP_HEAD_GATE : 0) | (RECIP_LATENT ? TAP_LATENT_MIX : 0),
	.flops = recip_flops,
	.flops_bwd = recip_flops_bwd,
	.forward = recip_forward,
	.backward = recip_backward,
	.step = recip_step,
	.metrics = IS_ENABLED(CONFIG_RA_MLA_LOG_METRICS) ? recip_metrics : NULL,
};
MIXER_REGISTER(recip);
