// SPDX-License-Identifier: MIT
/*
 * Decode of ra_mla, always in the absorbed form: queries go into the latent space and
 * weighted latents come out of it, so the cache of 2L numbers per position is read once
 * and never expanded.
 */
#include <math.h>

#include "ra_mla_latent.h"

enum { CACHE_STRIDE = sizeof(struct ra_mla_cache) / sizeof(act_t) };

struct cache_size ra_mla_cache_size(unsigned int has)
{
	(void)has;
	return (struct cache_size){ sizeof(struct ra_mla_cache), sizeof(act_t) * 2 * L };
}

static struct cache_rows latent_rows(act_t *base)
{
	return (struct cache_rows){ .base = base, .seq = CACHE_STRIDE, .row = L, .width = L };
}

static struct cache_rows ring_rows(act_t *base)
{
	return (struct cache_rows){ .base = base, .seq = CACHE_STRIDE, .row = (long)H * L,
				    .slots = RA_BAND, .width = H * L };
}

void ra_mla_cache_fill(const struct mixer_args *a, void *cache, const int32_t *len,
		       const act_t *qkv, const act_t *q_latent)
{
	struct ra_mla_cache *c = cache;
	struct cache_rows k = latent_rows(c->k[0]), v = latent_rows(c->v[0]);
	struct cache_rows ring = ring_rows(c->ring[0][0]);

	k_cache_fill(&k, qkv + AT_K, QKV, len, a->b, a->t);
	k_cache_fill(&v, qkv + AT_V, QKV, len, a->b, a->t);
	if (RA_BAND)
		k_cache_fill(&ring, q_latent, (long)H * L, len, a->b, a->t);
}

/* k, v and, with the reciprocal term, q~ of this token */
static void step_append(const struct mixer_args *a, struct ra_mla_cache *c, const int32_t *pos)
{
	struct ra_mla_step_tmp *tmp = a->tmp;
	struct cache_rows k = latent_rows(c->k[0]), v = latent_rows(c->v[0]);
	struct cache_rows ring = ring_rows(c->ring[0][0]);

	k_cache_put(&k, tmp->qkv[0] + AT_K, QKV, pos, a->b);
	k_cache_put(&v, tmp->qkv[0] + AT_V, QKV, pos, a->b);
	if (RA_BAND)
		k_cache_put(&ring, tmp->q_latent[0][0], (long)H * L, pos, a->b);
}

static void step_attn(const struct mixer_args *a, const struct ra_mla_cache *c, const int32_t *pos)
{
	struct ra_mla_step_tmp *tmp = a->tmp;
	bool routed = ROUTE_ROWS && (a->has & TAP_BIT(ROUTE));

	k_attn_step(&(struct attn_step){
		.b = a->b, .heads = H, .group = 1, .dk = L, .dv = L, .t_max = T_MAX, .pos = pos,
		.q = tmp->q_latent[0][0], .q_row = (long)H * L, .k = c->k[0], .k_row = L,
		.v = c->v[0], .v_row = L,
		.cache_stride = CACHE_STRIDE, .o = tmp->w[0][0], .gamma = a->in[TAP_HEAD_GATE],
		.scale = 1 / sqrt(L), .ra_scale = CONFIG_RA_MLA_RA_ALPHA / sqrt(L),
		.ra_window = CONFIG_RA_MLA_RA_WINDOW, .ring = RA_BAND ? c->ring[0][0] : NULL,
		.route = routed ? tmp->p[0][0] : NULL, .route_stride = T_MAX });
	if (routed)
		k_route_step(&(struct route_step){
			ROUTE_RULE, .b = a->b, .pos = pos, .row = a->out[TAP_ROUTE],
			.row_stride = T_MAX }, tmp->p[0][0], T_MAX, H);
}

void ra_mla_step(const struct mixer_args *a, void *cache, const int32_t *pos)
{
	const struct ra_mla_param *w = a->w;
	struct ra_mla_step_tmp *tmp = a->tmp;
	struct heads q = absorb_q(a->b), v = absorb_v(a->b);
	act_t *k = tmp->qkv[0] + AT_K;

	proj_fwd(tmp->qkv[0], a->x, w, a->b);
	if (a->in[TAP_LATENT_MIX])
		k_axpby(k, QKV, a->in[TAP_LATENT_MIX], L, a->b, L, CONFIG_RA_MLA_MLP_RECIP_ALPHA,
			1);
	if (a->has & TAP_BIT(LATENT))
		k_axpby(a->out[TAP_LATENT], L, k, QKV, a->b, L, 1, 0);
	heads_fwd(&q, tmp->q_latent[0][0], tmp->qkv[0], w->q_to_latent);
	step_append(a, cache, pos);
	step_attn(a, cache, pos);
	heads_fwd(&v, tmp->o[0], tmp->w[0][0], w->v_up);
	linear_fwd(a->y, tmp->o, w->out_proj, a->b, C, C, 1, 0);
}
