/* SPDX-License-Identifier: MIT */
/*
 * What the files of mla share: its widths, weights and buffers. Latents stand half by half
 * ([HALVES][n][R]), so that norm, splice and products of a half are those of a whole.
 */
#ifndef TENON_MLA_H
#define TENON_MLA_H

#include "kernels_rope.h"
#include "kernels_splice.h"
#include "mixer.h"
#include "../linear.h"

enum {
	R = CONFIG_MLA_LATENT_DIM,
	HALVES = IS_ENABLED(CONFIG_MLA_KV2) ? 2 : 1,	/* latents of a position: for K, for V */
	DN = CONFIG_MLA_NOPE_DIM ? CONFIG_MLA_NOPE_DIM : D,	/* content of a query and a key */
	DV = CONFIG_MLA_V_DIM ? CONFIG_MLA_V_DIM : D,
	DR = CONFIG_MLA_ROPE_DIM,			/* rotated part, one key for all heads */
	DK = DN + DR,
	KV = DN + DV,					/* a head's rows of kv_b_proj */
	FULL = IS_ENABLED(CONFIG_MLA_ROPE_FULL),	/* the whole query and key rotate */
	NORM = IS_ENABLED(CONFIG_MLA_LATENT_NORM),

	DIRECT = IS_ENABLED(CONFIG_MLA_QUERY_DIRECT),
	LATENT = IS_ENABLED(CONFIG_MLA_QUERY_LATENT),	/* queries from a latent of their own */
	SHARED = IS_ENABLED(CONFIG_MLA_QUERY_SHARED),	/* queries from c */
	RQ = LATENT ? CONFIG_MLA_Q_LATENT_DIM : 0,
	QIN = SHARED ? R : RQ,				/* what q_b_proj reads */
	FROM_X = IS_ENABLED(CONFIG_MLA_ROPE_FROM_X),	/* a query's rotated part has its own rows */
	DQ = FROM_X ? DN : DK,				/* a head's rows of q_b_proj */

	RC = CONFIG_MLA_KVSPLICE_DIM,			/* 0: no splice */
	TIED_SPLICE = IS_ENABLED(CONFIG_MLA_KVSPLICE_TIED),
	SPLICE = IS_ENABLED(CONFIG_MLA_KVSPLICE),
};

/* The last CONFIG_MLA_KVSPLICE_LAYERS layers have a splice. */
#define SPLICED PARAM_OPTION(0)

static_assert(R >= 1 && DR % 2 == 0 && (!FULL || (!DR && DN % 2 == 0)) && RC <= R,
	      "lower CONFIG_MLA_KVSPLICE_DIM, or make rotated widths even");

struct mla_param {
	TENSOR param_t q_proj[DIRECT * H * DK][C];
	TENSOR param_t q_proj_bias[BIAS * DIRECT * H * DK];
	TENSOR param_t q_a_proj[RQ][C];
	TENSOR param_t q_a_proj_bias[BIAS * RQ];
	TENSOR acc_t q_a_layernorm[NORM * RQ];
	TENSOR param_t q_b_proj[!DIRECT * H * DQ][QIN];
	TENSOR param_t q_b_proj_bias[BIAS * !DIRECT * H * DQ];
	TENSOR param_t q_rope_proj[FROM_X * H * DR][C];
	TENSOR param_t q_rope_proj_bias[BIAS * FROM_X * H * DR];
	TENSOR param_t k_rope_proj[DR][C];
	TENSOR param_t k_rope_proj_bias[BIAS * DR];
	TENSOR param_t kv_a_proj[HALVES * R][C];
	TENSOR param_t kv_a_proj_bias[BIAS * HALVES * R];
	TENSOR acc_t kv_a_layernorm[NORM * HALVES * R];
	TENSOR param_t kv_b_proj[H * KV][R];
	TENSOR param_t kv_b_proj_bias[BIAS * H * KV];
	TENSOR param_t o_proj[C][H * DV];
	TENSOR param_t o_proj_bias[BIAS * C];
	TENSOR acc_t scale[SPLICE * HALVES * R];	/* those of a splice, half by half */
	TENSOR acc_t shift[SPLICE * HALVES * R];
	TENSOR param_t compress[HALVES * RC][R];
	TENSOR param_t expand[!TIED_SPLICE * (RC > 0) * HALVES * R][RC];
};

/* ---- buffers --------------------------------------------------------------- */

struct mla_act {
	TENSOR act_t pre[NORM * HALVES][BT][R];	/* kv_a_proj x, before its norm */
	TENSOR acc_t rstd[NORM * HALVES][BT];
	TENSOR act_t c[HALVES][BT][R];
	TENSOR act_t z[(RC > 0) * HALVES][BT][RC];	/* in the bottleneck */
	TENSOR act_t chat[SPLICE * HALVES][BT][R];	/* behind it */
	TENSOR act_t qa_pre[NORM * BT][RQ];
	TENSOR acc_t qa_rstd[NORM * (RQ > 0) * BT];
	TENSOR act_t qa[BT][RQ];
	TENSOR act_t q[BT][H][DK];		/* rotated */
	TENSOR act_t kr[BT][DR];		/* the heads' common key, rotated */
	TENSOR act_t kv[BT][H][KV];		/* expanded; with FULL its keys are rotated */
	TENSOR act_t o[BT][H * DV];
	TENSOR acc_t lse[BT][H];
};

/* Keys of heads with the common one behind them: copies. */
struct mla_again {
	TENSOR act_t keys[(DR > 0) * BT][H][DK];
};

struct mla_tmp {
	TENSOR act_t qn[FROM_X * BT][H][DN];	/* both parts of a query, or their gradients */
	TENSOR act_t qr[FROM_X * BT][H][DR];
	TENSOR act_t u[SPLICE * BT][R];
	TENSOR act_t d_o[BT][H * DV];
	TENSOR act_t dq[BT][H][DK];
	TENSOR act_t dkeys[(DR > 0) * BT][H][DK];
	TENSOR act_t dkr[BT][DR];
	TENSOR act_t dkv[BT][H][KV];
	TENSOR act_t dlatent[HALVES][BT][R];	/* of what kv_b_proj reads */
	TENSOR act_t dc[HALVES][BT][R];
	TENSOR act_t dz[(RC > 0) * BT][RC];
	TENSOR act_t dqa[1 + NORM][BT][RQ];	/* of q_a_proj's latent, normed and not */
	TENSOR acc_t delta[BT][H + ATTN_SUMS(H * (2 * DK + DV))];
	TENSOR double error[HALVES];
};

enum {
	ROW = HALVES * R + DR,			/* elements of a cached position */
	ROW_SPLICED = HALVES * RC + DR,
};

/* decode state of one sequence: [V's latent |] K's latent | common key */
struct mla_cache {
	TENSOR act_t row[T_MAX][ROW];
};

struct mla_cache_spliced {
	TENSOR act_t row[T_MAX][ROW_SPLICED];
};

struct mla_step_tmp {
	TENSOR act_t pre[NORM * HALVES][B_MAX][R];
	TENSOR acc_t rstd[HALVES][B_MAX];
	TENSOR act_t c[HALVES][B_MAX][R];
	TENSOR act_t z[(RC > 0) * HALVES][B_MAX][RC];
	TENSOR act_t chat[SPLICE * SHARED * HALVES][B_MAX][R];
	TENSOR act_t u[SPLICE * B_MAX][R];
	TENSOR act_t qa_pre[NORM * B_MAX][RQ];
	TENSOR acc_t qa_rstd[B_MAX];
	TENSOR act_t qa[B_MAX][RQ];
	TENSOR act_t qn[FROM_X * B_MAX][H][DN];
	TENSOR act_t qr[FROM_X * B_MAX][H][DR];
	TENSOR act_t q[B_MAX][H][DK];
	TENSOR act_t kr[B_MAX][DR];
	TENSOR act_t q_latent[B_MAX][H][R];	/* absorbed queries */
	TENSOR act_t key[B_MAX][H][R + DR];	/* what the cached keys are met with */
	TENSOR act_t w[B_MAX][H][R];		/* weighted latents */
	TENSOR act_t o[B_MAX][H * DV];
	TENSOR act_t past[FULL * HALVES * SPLICE * B_MAX][T_MAX][R];	/* ĉ of all positions */
	TENSOR act_t kv[FULL * B_MAX][T_MAX][H][KV];
};

/* ---- mla_latent.c: what x is projected to -------------------------------------- */

/*
 * struct mla_rows - n rows from x to queries and latents, in a forward or a step
 * @w, @has: as in struct mixer_args
 * @n: rows
 * @x: [n][C]
 * others: the members of that name above; those of half h of the latents at [h]; @chat NULL:
 *	nothing reads it
 */
struct mla_rows {
	const struct mla_param *w;
	unsigned int has;
	int n;
	const act_t *x;
	act_t *pre[HALVES], *c[HALVES], *z[HALVES], *chat[HALVES];
	acc_t *rstd[HALVES];
	act_t *qa_pre, *qa, *qn, *qr, *q, *kr, *u;
	acc_t *qa_rstd;
};

/* Those of a forward, @act and @tmp, or of a step, @tmp for both. */
#define MLA_ROWS(a, act, tmp, rows) ({						\
	struct mla_rows s_ = { .w = (a)->w, .has = (a)->has, .n = rows, .x = (a)->x,	\
		.qa_pre = (act_t *)(NORM ? (act)->qa_pre : (act)->qa),			\
		.qa = (act_t *)(act)->qa, .qa_rstd = (act)->qa_rstd,			\
		.qn = (act_t *)(tmp)->qn, .qr = (act_t *)(tmp)->qr,			\
		.q = (act)->q[0][0], .kr = (act_t *)(act)->kr, .u = (act_t *)(tmp)->u };	\
	for (int h_ = 0; h_ < HALVES; h_++) {						\
		s_.c[h_] = (act)->c[h_][0];						\
		s_.pre[h_] = NORM ? (act_t *)((act)->pre + h_) : s_.c[h_];		\
		s_.rstd[h_] = (acc_t *)((act)->rstd + h_);				\
		s_.z[h_] = (act_t *)((act)->z + h_);					\
		s_.chat[h_] = (act_t *)((act)->chat + h_);				\
	}										\
	s_; })

/** mla_project() - from x: latents, through the splice where there is one; queries; common key */
void mla_project(const struct mla_rows *s);

/** mla_latent() - what kv_b_proj reads: c, or behind a splice ĉ */
static inline const act_t *mla_latent(const struct mla_rows *s, int half)
{
	return SPLICE && (s->has & SPLICED) ? s->chat[half] : s->c[half];
}

/**
 * mla_project_bwd() - gradients of x and of every weight up to here
 *
 * From tmp's dq and dkr, not rotated, and dlatent, to which the queries may add.
 */
void mla_project_bwd(const struct mixer_args *a, const struct mla_rows *s);

/** mla_project_work() - products of all this; @chat: ĉ is made */
void mla_project_work(struct work *w, int n, unsigned int has, bool backward, bool chat);

/** mla_rotate() - by the positions of struct rope; nothing where nothing rotates */
void mla_rotate(int n, int t, const int32_t *pos, bool back, const struct rope_heads *x, int nr);

/* The rotated parts of queries [n][H][DK]. */
static inline struct rope_heads mla_query_heads(act_t *q)
{
	return (struct rope_heads){ .x = q + (FULL ? 0 : DN), .row = (long)H * DK, .head = DK,
				    .heads = H };
}

/* Of keys: the common one [n][DR], or with FULL the expanded ones in [n][H][KV]. */
static inline struct rope_heads mla_key_heads(act_t *kr, act_t *kv)
{
	if (FULL)
		return (struct rope_heads){ .x = kv, .row = (long)H * KV, .head = KV, .heads = H };
	return (struct rope_heads){ .x = kr, .row = DR, .head = DR, .heads = 1 };
}

/* ---- mla.c ----------------------------------------------------------------------- */

/*
 * struct mla_part - neighbouring rows of kv_b_proj that read one half: all of them, or
 * those of a head's keys or values
 */
struct mla_part {
	int first, rows, half;
};

enum { PARTS = HALVES == 1 ? 1 : 2 * H };

static inline struct mla_part mla_part(int i)
{
	if (HALVES == 1)
		return (struct mla_part){ 0, H * KV, 0 };
	return (struct mla_part){ i / 2 * KV + i % 2 * DN, i % 2 ? DV : DN, i % 2 };
}

/** mla_expand_part() - its product, but for rows and what it reads */
static inline struct gemm mla_expand_part(const struct mla_param *w, struct mla_part p, act_t *kv)
{
	return (struct gemm){ .n = p.rows, .k = R, .tb = true, .lda = R,
			      .b = w->kv_b_proj[p.first], .ldb = R, .c = kv + p.first,
			      .ldc = (long)H * KV, .alpha = 1, .ep = GEMM_BIAS,
			      .bias = WITH_BIAS(w->kv_b_proj_bias + p.first) };
}

/** mla_options() - SPLICED in the layers that have a splice */
unsigned int mla_options(int layer);

/* ---- mla_splice.c ------------------------------------------------------------- */

param_init_fn init_splice_scale, init_compress, init_expand;
/** mla_splice_of() - the affine map of one half, of n rows */
struct splice mla_splice_of(const struct mla_param *w, int half, int n);
/** mla_splice_expand() - the product E z of one half, but for rows, z and its result */
struct gemm mla_splice_expand(const struct mla_param *w, int half);
/** mla_splice_fwd() - z and ĉ of one half */
void mla_splice_fwd(const struct mla_rows *s, int half);
/** mla_splice_bwd() - tmp's dc of one half from dlatent; gradients of the splice's tensors */
void mla_splice_bwd(const struct mixer_args *a, const struct mla_rows *s, int half);
/** mla_splice_absorb() - y [n][ld] = E^T (q / sigma), queries in the space of K's z; @q changes */
void mla_splice_absorb(const struct mla_param *w, act_t *y, long ld, act_t *q, int n);
/** mla_splice_return() - y [n][R] = (E z - shift) / sigma of V's half */
void mla_splice_return(const struct mla_param *w, act_t *y, const act_t *z, int n);
/** mla_splice_aux() - adds the weighted reconstruction error */
void mla_splice_aux(const struct mixer_args *a, const struct mla_rows *s);
int mla_splice_metrics(const struct mixer_args *a, struct metric *out);
void mla_splice_work(struct work *w, int n, bool backward, bool chat);

/* ---- mla_step.c ------------------------------------------------------------------ */

void mla_step(const struct mixer_args *a, void *cache, const int32_t *pos);
void mla_fill(const struct mixer_args *a, void *cache, const int32_t *len);
struct cache_size mla_cache_size(unsigned int has);
void mla_work_step(struct work *w, int pos, unsigned int has);

#endif
