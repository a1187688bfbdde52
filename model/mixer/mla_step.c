// SPDX-License-Identifier: MIT
/*
 * Decode of mla, absorbed: a query goes into the space of what is cached, and weighted
 * latents come out of it, so that the cache is read once and never expanded. Where whole
 * keys rotate (FULL) the position stands between the two maps, and keys and values of the
 * past are expanded in each step.
 */
#include <math.h>

#include "mla.h"
#include "util.h"

/* Widths of what a layer caches, by whether it has a splice. */
struct kept {
	int width, row;
	size_t size;
};

static struct kept kept(unsigned int has)
{
	if (SPLICE && (has & SPLICED))
		return (struct kept){ RC, ROW_SPLICED, sizeof(struct mla_cache_spliced) };
	return (struct kept){ R, ROW, sizeof(struct mla_cache) };
}

struct cache_size mla_cache_size(unsigned int has)
{
	struct kept k = kept(has);

	return (struct cache_size){ k.size, sizeof(act_t) * k.row };
}

/* Elements [first, first + width) of the rows. */
static struct cache_rows rows_at(void *cache, struct kept k, int first, int width)
{
	return (struct cache_rows){ .base = (act_t *)cache + first, .seq = k.size / sizeof(act_t),
				    .row = k.row, .width = width };
}

/* Where a half stands in a row: that of the keys beside the common key. */
static int half_at(struct kept k, int half)
{
	return (HALVES - 1 - half) * k.width;
}

static const act_t *half_kept(const struct mla_rows *s, int half)
{
	return SPLICE && (s->has & SPLICED) ? s->z[half] : s->c[half];
}

void mla_fill(const struct mixer_args *a, void *cache, const int32_t *len)
{
	struct mla_act *act = a->act;
	struct mla_tmp *tmp = a->tmp;
	struct mla_rows s = MLA_ROWS(a, act, tmp, a->b * a->t);
	struct kept k = kept(a->has);
	struct cache_rows kr = rows_at(cache, k, HALVES * k.width, DR);

	for (int half = 0; half < HALVES; half++) {
		struct cache_rows rows = rows_at(cache, k, half_at(k, half), k.width);

		k_cache_fill(&rows, half_kept(&s, half), k.width, len, a->b, a->t);
	}
	if (DR)
		k_cache_fill(&kr, s.kr, DR, len, a->b, a->t);
}

static void step_append(const struct mla_rows *s, struct kept k, void *cache, const int32_t *pos)
{
	struct cache_rows kr = rows_at(cache, k, HALVES * k.width, DR);

	for (int half = 0; half < HALVES; half++) {
		struct cache_rows rows = rows_at(cache, k, half_at(k, half), k.width);

		k_cache_put(&rows, half_kept(s, half), k.width, pos, s->n);
	}
	if (DR)
		k_cache_put(&kr, s->kr, DR, pos, s->n);
}

/* ---- absorbed -------------------------------------------------------------------- */

/* key [b][H][width + DR]: what the rows' keys are met with */
static void absorb(const struct mla_rows *s, struct mla_step_tmp *tmp, struct kept k)
{
	act_t *key = tmp->key[0][0];
	bool spliced = SPLICE && (s->has & SPLICED);
	long ld = k.width + DR;

	k_gemm(&(struct gemm){
		.m = s->n, .n = R, .k = DN, .a = s->q, .lda = (long)H * DK, .sa = DK,
		.b = s->w->kv_b_proj, .ldb = R, .sb = (long)KV * R,
		.c = spliced ? tmp->q_latent[0][0] : key, .ldc = H * (spliced ? R : ld),
		.sc = spliced ? R : ld, .alpha = 1, .batch = H });
	if (spliced)
		mla_splice_absorb(s->w, key, ld, tmp->q_latent[0][0], s->n * H);
	if (DR)
		k_axpby(key + k.width, ld, s->q + DN, DK, s->n * H, DR, 1, 0);
}

/* o_h = W_v,h w_h + bias from weighted rows [b][H][width] */
static void return_values(const struct mla_rows *s, struct mla_step_tmp *tmp)
{
	const struct mla_param *w = s->w;
	const act_t *weighted = tmp->w[0][0];

	if (SPLICE && (s->has & SPLICED)) {
		mla_splice_return(w, tmp->q_latent[0][0], weighted, s->n * H);
		weighted = tmp->q_latent[0][0];
	}
	if (BIAS)	/* of each head, to all rows */
		k_heads_spread(tmp->o[0], DV, (long)H * DV, (const act_t *)w->kv_b_proj_bias + DN,
			       KV, H, s->n, DV);
	k_gemm(&(struct gemm){
		.m = s->n, .n = DV, .k = R, .tb = true, .a = weighted, .lda = (long)H * R, .sa = R,
		.b = w->kv_b_proj[DN], .ldb = R, .sb = (long)KV * R, .c = tmp->o,
		.ldc = (long)H * DV, .sc = DV, .alpha = 1, .beta = BIAS, .batch = H });
}

static void step_absorbed(const struct mla_rows *s, struct mla_step_tmp *tmp, struct kept k,
			  act_t *cache, const int32_t *pos)
{
	absorb(s, tmp, k);
	k_attn_step(&(struct attn_step){
		.b = s->n, .heads = H, .group = 1, .dk = k.width + DR, .dv = k.width,
		.t_max = T_MAX, .pos = pos, .q = tmp->key[0][0], .q_row = (long)H * (k.width + DR),
		.k = cache + half_at(k, 0), .k_row = k.row, .v = cache + half_at(k, HALVES - 1),
		.v_row = k.row, .cache_stride = k.size / sizeof(act_t), .o = tmp->w[0][0],
		.scale = 1 / sqrt(DK) });
	return_values(s, tmp);
}

/* ---- expanded: whole keys rotate --------------------------------------------------- */

/* One half of all cached positions, as an operand. */
struct past {
	const act_t *x;
	long row, seq;
};

/* ĉ of what is kept in @p */
static struct past past_spliced(const struct mla_rows *s, struct mla_step_tmp *tmp, struct past p,
				int half, const int32_t *pos)
{
	struct gemm g = mla_splice_expand(s->w, half);
	struct splice map = mla_splice_of(s->w, half, s->n * T_MAX);
	act_t *chat = (act_t *)(tmp->past + (size_t)half * B_MAX);

	g.m = T_MAX;
	g.batch = s->n;
	g.a = p.x;
	g.lda = p.row;
	g.sa = p.seq;
	g.c = chat;
	g.sc = (long)T_MAX * R;
	k_gemm_past(&g, pos);
	k_splice_out(chat, chat, &map);
	return (struct past){ chat, R, g.sc };
}

static struct past past_of(const struct mla_rows *s, struct mla_step_tmp *tmp, struct kept k,
			   const act_t *cache, int half, const int32_t *pos)
{
	struct past p = { cache + half_at(k, half), k.row, k.size / sizeof(act_t) };

	return SPLICE && (s->has & SPLICED) ? past_spliced(s, tmp, p, half, pos) : p;
}

static void step_expanded(const struct mla_rows *s, struct mla_step_tmp *tmp, struct kept k,
			  act_t *cache, const int32_t *pos)
{
	act_t *kv = (act_t *)tmp->kv;
	struct rope_heads keys = mla_key_heads(NULL, kv);
	struct past past[HALVES];

	for (int half = 0; half < HALVES; half++)
		past[half] = past_of(s, tmp, k, cache, half, pos);
	for (int i = 0; i < PARTS; i++) {
		struct mla_part p = mla_part(i);
		struct gemm g = mla_expand_part(s->w, p, kv);

		g.m = T_MAX;
		g.batch = s->n;
		g.a = past[p.half].x;
		g.lda = past[p.half].row;
		g.sa = past[p.half].seq;
		g.sc = (long)T_MAX * H * KV;
		k_gemm_past(&g, pos);
	}
	mla_rotate(s->n * T_MAX, T_MAX, NULL, false, &keys, 1);
	k_attn_step(&(struct attn_step){
		.b = s->n, .heads = H, .group = 1, .dk = DN, .dv = DV, .t_max = T_MAX, .pos = pos,
		.q = s->q, .q_row = (long)H * DN, .k = kv, .k_row = (long)H * KV, .k_head = KV,
		.v = kv + DN, .v_row = (long)H * KV, .v_head = KV,
		.cache_stride = (long)T_MAX * H * KV, .o = tmp->o[0], .scale = 1 / sqrt(DK) });
}

void mla_step(const struct mixer_args *a, void *cache, const int32_t *pos)
{
	const struct mla_param *w = a->w;
	struct mla_step_tmp *tmp = a->tmp;
	struct mla_rows s = MLA_ROWS(a, tmp, tmp, a->b);
	struct kept k = kept(a->has);
	struct rope_heads heads[] = { mla_query_heads(s.q), mla_key_heads(s.kr, NULL) };

	for (int half = 0; !SHARED && half < HALVES; half++)
		s.chat[half] = NULL;	/* only a query would read it */
	mla_project(&s);
	mla_rotate(a->b, 1, pos, false, heads, FULL ? 1 : 2);
	step_append(&s, k, cache, pos);
	if (FULL)
		step_expanded(&s, tmp, k, cache, pos);
	else
		step_absorbed(&s, tmp, k, cache, pos);
	linear_bias_fwd(a->y, tmp->o, w->o_proj, w->o_proj_bias, a->b, C, H * DV);
}

/* ---- operations -------------------------------------------------------------------- */

static void absorbed_work(struct work *w, int pos, struct kept k, bool spliced)
{
	work_product(w, 1, R, DN, H);
	work_product(w, 1, DV, R, H);
	if (spliced) {
		work_product(w, H, k.width, R, 1);
		work_product(w, H, R, k.width, 1);
	}
	work_pairs(w, pos + 1, H * (2.0 * k.width + DR));
}

static void expanded_work(struct work *w, int pos, struct kept k, bool spliced)
{
	if (spliced)
		work_product(w, pos + 1, R, k.width, HALVES);
	for (int i = 0; i < PARTS; i++)
		work_product(w, pos + 1, mla_part(i).rows, R, 1);
	work_pairs(w, pos + 1, (double)H * KV);
}

void mla_work_step(struct work *w, int pos, unsigned int has)
{
	struct kept k = kept(has);
	bool spliced = SPLICE && (has & SPLICED);

	mla_project_work(w, 1, has, false, SHARED);
	if (FULL)
		expanded_work(w, pos, k, spliced);
	else
		absorbed_work(w, pos, k, spliced);
	work_linear(w, 1, C, H * DV, false);
}
