/* SPDX-License-Identifier: MIT */
/*
 * What the files of ra_mla share: its weights and buffers, the projections of x, and
 * products of all heads.
 */
#ifndef TENON_RA_MLA_LATENT_H
#define TENON_RA_MLA_LATENT_H

#include "kernels_stats.h"
#include "../linear.h"
#include "../ra_mla.h"

enum {
	QKV = C + 2 * L,	/* a position's q | k | v, one row */
	AT_K = C,
	AT_V = C + L,
	/* matrices of q_to_latent and v_up: one per head, or one for all */
	NQ = IS_ENABLED(CONFIG_RA_MLA_PER_HEAD_Q_LATENT) ? H : 1,
	NV = IS_ENABLED(CONFIG_RA_MLA_PER_HEAD_V_UP) ? H : 1,
	Q_HEADS = IS_ENABLED(CONFIG_RA_MLA_PER_HEAD_Q_LATENT) * H,
	V_HEADS = IS_ENABLED(CONFIG_RA_MLA_PER_HEAD_V_UP) * H,
	Q_SHARED = Q_HEADS ? 0 : D,
	V_SHARED = V_HEADS ? 0 : L,
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

/* ---- buffers --------------------------------------------------------------- */

enum {
	EXPANDED = RA_MLA_EXPANDED,
	ABSORBED = !EXPANDED,
	/* a mechanism that is off reads and writes no latent */
	LATENT = IS_ENABLED(CONFIG_RA_MLA_MLP_LATENT_RECIP),
	/* expanded keys outlive forward where the routing recomputes its rows from them */
	KEEP_K = EXPANDED && ROUTE_DENSE,
};

struct ra_mla_act {
	TENSOR act_t qkv[BT][QKV];
	TENSOR act_t k_heads[KEEP_K * BT][NQ][D];
	TENSOR act_t q_latent[ABSORBED * BT][H][L];
	TENSOR act_t o[BT][H][SCORE_WIDTH];	/* gamma sum_u P v_u */
	TENSOR acc_t lse[BT][H];
	TENSOR int32_t index[BT][ROUTE_ROWS][ROUTE_K];	/* struct route */
	TENSOR acc_t weight[BT][ROUTE_ROWS][ROUTE_K];
	TENSOR acc_t thr[ROUTE_DENSE * BT][ROUTE_ROWS];
	TENSOR acc_t inv[ROUTE_DENSE * BT][ROUTE_ROWS];
};

struct ra_mla_tmp {
	TENSOR act_t k_heads[(EXPANDED && !KEEP_K) * BT][NQ][D];
	TENSOR act_t v_heads[EXPANDED * BT][NV][D];
	TENSOR act_t o[ABSORBED * BT][C];
	union {
		TENSOR char scratch[ROUTE_SCRATCH];
		struct {
			TENSOR act_t d_o[BT][C];
			TENSOR act_t dqkv[BT][QKV];
			TENSOR act_t dk_heads[EXPANDED * BT][NQ][D];
			TENSOR act_t dv_heads[EXPANDED * BT][NV][D];
			TENSOR act_t dw[ABSORBED * BT][H][L];
			TENSOR act_t dq_latent[ABSORBED * BT][H][L];
			TENSOR acc_t delta[BT][H + ATTN_SUMS(EXPANDED ? C + (NQ + NV) * D : (H + 2) * L)];
		} bwd;
		struct {
			TENSOR acc_t entropy[BT][H];
			TENSOR act_t k[BT][L];
			TENSOR struct stats stats[3];
		} log;
		TENSOR act_t ring[EXPANDED * (RA_BAND > 0) * BT][H][L];	/* q~ for a fill */
	};
};

/* decode state of one sequence */
struct ra_mla_cache {
	TENSOR act_t k[T_MAX][L];
	TENSOR act_t v[T_MAX][L];
	TENSOR act_t ring[RA_BAND][H][L];	/* q~ of position u in slot u % (W + 1) */
};

struct ra_mla_step_tmp {
	TENSOR act_t qkv[B_MAX][QKV];
	TENSOR act_t q_latent[B_MAX][H][L];
	TENSOR act_t w[B_MAX][H][L];
	TENSOR act_t o[B_MAX][C];
	TENSOR acc_t p[(ROUTE_ROWS > 0) * B_MAX][H][T_MAX];	/* gamma P */
};

/* ---- projections of x ------------------------------------------------------ */

enum {
	/* whether q_proj, k_down and v_down are one matrix: no padding parts them */
	ONE_PROJ = offsetof(struct ra_mla_param, v_down) == (C + L) * C * sizeof(param_t) &&
		   offsetof(struct ra_mla_param, k_down) == C * C * sizeof(param_t),
	NR_PROJ = ONE_PROJ ? 1 : 3,
};

/* Columns of a row [QKV], and where their weight stands. */
struct proj {
	int first, width;
	size_t offset;
};

static inline struct proj proj_at(int i)
{
	const struct proj parts[] = {
		{ 0, ONE_PROJ ? QKV : C, offsetof(struct ra_mla_param, q_proj) },
		{ AT_K, L, offsetof(struct ra_mla_param, k_down) },
		{ AT_V, L, offsetof(struct ra_mla_param, v_down) } };

	return parts[i];
}

/* qkv[n][QKV] = x [q_proj ; k_down ; v_down]^T */
static inline void proj_fwd(act_t *qkv, const act_t *x, const struct ra_mla_param *w, int n)
{
	for (int i = 0; i < NR_PROJ; i++) {
		struct proj p = proj_at(i);

		k_gemm(&(struct gemm){
			.m = n, .n = p.width, .k = C, .tb = true, .a = x, .lda = C,
			.b = (const char *)w + p.offset, .ldb = C, .c = qkv + p.first,
			.ldc = QKV, .alpha = 1 });
	}
}

/* Gradients of x and of the three weights. */
static inline void proj_bwd(act_t *dx, grad_t *dw, const act_t *dqkv, const act_t *x,
			    const struct ra_mla_param *w, int n)
{
	for (int i = 0; i < NR_PROJ; i++) {
		struct proj p = proj_at(i);

		k_gemm_grad(&(struct gemm){
			.m = p.width, .n = C, .k = n, .ta = true, .a = dqkv + p.first,
			.lda = QKV, .b = x, .ldb = C, .c = dw + p.offset / sizeof(param_t),
			.ldc = C, .alpha = 1 });
		k_gemm(&(struct gemm){
			.m = n, .n = C, .k = p.width, .a = dqkv + p.first, .lda = QKV,
			.b = (const char *)w + p.offset, .ldb = C, .c = dx, .ldc = C,
			.alpha = 1, .beta = i > 0 });
	}
}

/* ---- products of all heads -------------------------------------------------- */

/*
 * struct heads - y_h = x_h w_h for each head h
 * @n: heads
 * @rows: of x and y
 * @in: columns of an x_h
 * @out: columns of a y_h
 * @x_row: row stride of x
 * @x_head: from x_h to the next, 0: one for all
 * @w_head: from w_h [in][out] to the next, 0: one for all
 * @y_row: row stride of y
 * @y_head: from y_h to the next
 */
struct heads {
	int n, rows, in, out;
	long x_row, x_head, w_head, y_row, y_head;
};

/* Heads that share a result add to it in their order. */
static inline void heads_product(struct gemm g, int n, void (*product)(const struct gemm *))
{
	int rounds = g.sc ? 1 : n;

	g.batch = g.sc ? n : 1;
	g.alpha = 1;
	for (int h = 0; h < rounds; h++) {
		product(&g);
		g.beta = 1;
		g.a = (const act_t *)g.a + g.sa;
		g.b = (const act_t *)g.b + g.sb;
	}
}

static inline void heads_fwd(const struct heads *s, act_t *y, const act_t *x, const void *w)
{
	heads_product((struct gemm){
		.m = s->rows, .n = s->out, .k = s->in, .a = x, .lda = s->x_row, .sa = s->x_head,
		.b = w, .ldb = s->out, .sb = s->w_head, .c = y, .ldc = s->y_row,
		.sc = s->y_head }, s->n, k_gemm);
}

static inline void heads_dx(const struct heads *s, act_t *dx, const act_t *dy, const void *w)
{
	heads_product((struct gemm){
		.m = s->rows, .n = s->in, .k = s->out, .tb = true, .a = dy, .lda = s->y_row,
		.sa = s->y_head, .b = w, .ldb = s->out, .sb = s->w_head, .c = dx,
		.ldc = s->x_row, .sc = s->x_head }, s->n, k_gemm);
}

static inline void heads_dw(const struct heads *s, grad_t *dw, const act_t *dy, const act_t *x)
{
	heads_product((struct gemm){
		.m = s->in, .n = s->out, .k = s->rows, .ta = true, .a = x, .lda = s->x_row,
		.sa = s->x_head, .b = dy, .ldb = s->y_row, .sb = s->y_head, .c = dw,
		.ldc = s->out, .sc = s->w_head }, s->n, k_gemm_grad);
}

/* q~ [rows][H][L] from rows of [QKV] */
static inline struct heads absorb_q(int rows)
{
	return (struct heads){ .n = H, .rows = rows, .in = D, .out = L, .x_row = QKV, .x_head = D,
			       .w_head = Q_HEADS ? D * L : 0, .y_row = (long)H * L, .y_head = L };
}

/* the heads' outputs [rows][H][D] from weighted latents [rows][H][L] */
static inline struct heads absorb_v(int rows)
{
	return (struct heads){ .n = H, .rows = rows, .in = L, .out = D, .x_row = (long)H * L,
			       .x_head = L, .w_head = V_HEADS ? L * D : 0, .y_row = C,
			       .y_head = D };
}

/* ---- ra_mla_form.c -------------------------------------------------------------- */

/** ra_mla_attn() - what the attention kernels read and write in this form */
struct attn ra_mla_attn(const struct mixer_args *a);
/** ra_mla_form_fwd() - that of it which is made from qkv */
void ra_mla_form_fwd(const struct mixer_args *a);
/** ra_mla_keys() - after a forward: keys again, where tmp has lost them */
void ra_mla_keys(const struct mixer_args *a);
/**
 * ra_mla_out() - what out_proj reads, [b*t][C], after attention
 *
 * Absorbed it is cheaper to compute again than to keep.
 */
const act_t *ra_mla_out(const struct mixer_args *a);
/** ra_mla_form_bwd() - from tmp->bwd.d_o to dqkv, and the gradients of q_to_latent and v_up */
void ra_mla_form_bwd(const struct mixer_args *a, const struct attn *at);
/** ra_mla_form_work() - products of the form, of @n rows */
void ra_mla_form_work(struct work *w, int n, bool backward);

/* ---- ra_mla_step.c --------------------------------------------------------------- */

void ra_mla_step(const struct mixer_args *a, void *cache, const int32_t *pos);
struct cache_size ra_mla_cache_size(unsigned int has);
/**
 * ra_mla_cache_fill() - k, v and q~ of a forward into the caches
 * @qkv: [b][t][QKV]
 * @q_latent: [b][t][H][L], with the reciprocal term
 */
void ra_mla_cache_fill(const struct mixer_args *a, void *cache, const int32_t *len,
		       const act_t *qkv, const act_t *q_latent);

#endif
