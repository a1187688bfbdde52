/* SPDX-License-Identifier: MIT */
/*
 * What the files of recip share: its weights and buffers, and the contract between the
 * MLP and the mechanisms that are compiled in.
 *
 * Behind GELU everything is linear in h0 and in attention's latent a, so that one matrix
 * takes [h0 | a] to every output (the joined form, Documentation/cross-token.md):
 *
 *     [out z | y | c] = [h0 | a] [ O, alpha_r O A_w ; W, alpha_r W A_w ; D_w, 0 ]^T
 *     O = [c_proj ; gate_proj],  W = O cross_proj,  then [out z] += alpha_c R^ y
 *
 * c_proj owns the first C rows. Every mechanism owns the rows that its struct recip_part
 * asks for, and may act on all rows above them.
 */
#ifndef TENON_RECIP_H
#define TENON_RECIP_H

#include "arch.h"
#include "kernels_gate.h"
#include "kernels_stats.h"
#include "../linear.h"
#include "../ra_mla.h"

/*
 * The direct form changes the hidden layer itself, mechanism by mechanism, before the
 * rows of O read it: the only one where heads route slices of it by rows of their own.
 */
#ifndef RECIP_DIRECT
#define RECIP_DIRECT (IS_ENABLED(CONFIG_RA_MLA_MLP_CROSS_TOKEN) && \
		      !IS_ENABLED(CONFIG_RA_MLA_MLP_SPARSE_HEAD_AVERAGE))
#endif

enum {
	RECIP_GATE = IS_ENABLED(CONFIG_RA_MLA_MLP_ATTN_GATE),
	RECIP_SEQUENCE = RECIP_GATE && IS_ENABLED(CONFIG_RA_MLA_MLP_GATE_POOL_SEQUENCE),
	RECIP_CAUSAL = RECIP_GATE && IS_ENABLED(CONFIG_RA_MLA_MLP_GATE_POOL_CAUSAL),
	RECIP_CROSS = IS_ENABLED(CONFIG_RA_MLA_MLP_CROSS_TOKEN),
	RECIP_AVERAGE = RECIP_CROSS && IS_ENABLED(CONFIG_RA_MLA_MLP_SPARSE_HEAD_AVERAGE),
	RECIP_LATENT = IS_ENABLED(CONFIG_RA_MLA_MLP_LATENT_RECIP),
	RECIP_UNTIED = RECIP_LATENT && IS_ENABLED(CONFIG_RA_MLA_MLP_TYING_MODE_UNTIED),
	RECIP_TIED = RECIP_LATENT && IS_ENABLED(CONFIG_RA_MLA_MLP_TYING_MODE_TIED_TRANSPOSE),
	RECIP_SCALAR = RECIP_LATENT && IS_ENABLED(CONFIG_RA_MLA_MLP_TYING_MODE_PER_HEAD_SCALAR),
	RECIP_LOG = IS_ENABLED(CONFIG_RA_MLA_LOG_METRICS),

	G = RECIP_GATE * CONFIG_RA_MLA_MLP_GATE_DIM,		/* width of z */
	N = RECIP_UNTIED * CONFIG_RA_MLA_MLP_LATENT_DIM,	/* of the untied way back */
	A = RECIP_LATENT * L,					/* of a and c */

	/* the joined matrix at its largest; smaller where a tap has no reader or writer */
	OUT = C + G,
	ROWS = OUT + (RECIP_DIRECT ? 0 : RECIP_CROSS * OUT + (RECIP_UNTIED ? N : A)),
	COLS = F + (RECIP_DIRECT ? 0 : A),
	RECIP_OWN = ROWS > C || COLS > F,	/* else c_proj is the matrix: mlp */
};

struct recip_param {
	TENSOR param_t c_fc[F][C];
	TENSOR param_t c_fc_bias[BIAS * F];
	TENSOR param_t c_proj[C][F];
	TENSOR param_t c_proj_bias[BIAS * C];
	TENSOR param_t cross_proj[RECIP_CROSS * F][F];
	TENSOR param_t coupler[RECIP_TIED * F][A];
	TENSOR param_t attn_to_mlp[RECIP_UNTIED * F][A];
	TENSOR param_t attn_scale[RECIP_SCALAR * H];
	/* where HEAD_GATE is read */
	TENSOR param_t gate_proj[G][F];
	TENSOR param_t gate_to_heads[RECIP_GATE * H][G];
	/* where LATENT_MIX is read */
	TENSOR param_t mlp_down[N][F];
	TENSOR param_t mlp_to_attn[RECIP_UNTIED * A][N];
	TENSOR param_t mlp_scale[RECIP_SCALAR * H];
};

struct recip_act {
	TENSOR act_t pre[BT][F];
	TENSOR act_t x[RECIP_DIRECT * BT][COLS];	/* direct form: h as O reads it */
	TENSOR param_t below[RECIP_OWN * (ROWS - C)][COLS];	/* of the joined matrix: not c_proj's */
	TENSOR act_t mixed[RECIP_DIRECT * BT][F];	/* R^ h */
	TENSOR acc_t z[BT][G];			/* outputs whose sums are wide; then pooled */
	TENSOR act_t u[BT][N];			/* h0 mlp_down^T */
};

struct recip_again {
	TENSOR act_t x[!RECIP_DIRECT * BT][COLS];	/* h0 | a */
};

struct recip_tmp {
	TENSOR param_t w[RECIP_OWN * ROWS][COLS];	/* the joined matrix */
	TENSOR act_t y[RECIP_OWN * BT][ROWS];	/* its product; in backward their gradient */
	TENSOR param_t map[RECIP_SCALAR * F][A];	/* A_w or M's matrix, from its factors */
	TENSOR char route[ROUTE_SCRATCH];
	TENSOR act_t z[BT][G];			/* rounded, dense */
	union {
		TENSOR param_t bias[RECIP_OWN * ROWS];
		struct {
			TENSOR act_t dh[BT][F];
			TENSOR acc_t dz[BT][G];
			TENSOR char gate[HEAD_GATE_SCRATCH_MAX(BT, H, G)];
			/* gradients of the matrix: h0's columns, a's columns */
			TENSOR grad_t dw[RECIP_OWN * ROWS][F];
			TENSOR grad_t db[RECIP_OWN * ROWS];
			TENSOR act_t dw_a[RECIP_LATENT * !RECIP_DIRECT * ROWS][A];
			TENSOR param_t dw_cross[RECIP_CROSS * OUT][F];	/* W's, rounded */
			TENSOR grad_t dmap[RECIP_SCALAR * F][A];
			/* direct form: gradient of mixed, later h0; of u */
			TENSOR act_t wide[RECIP_DIRECT * BT][F];
			TENSOR act_t du[RECIP_DIRECT * BT][N];
		} bwd;
		/* metrics, and the fill of the direct form */
		struct {
			TENSOR act_t h[(RECIP_DIRECT || (RECIP_LOG && (RECIP_CROSS || RECIP_LATENT))) * BT][F];
			TENSOR act_t part[RECIP_LOG * RECIP_CROSS * BT][F];
			TENSOR struct stats stats;
		} log;
	};
};

/* decode state of one sequence where the gate is read */
struct recip_cache {
	/* heads averaged: y of each position; apart: h before the mix */
	TENSOR act_t past[RECIP_CROSS * T_MAX][RECIP_AVERAGE ? OUT : F];
	TENSOR acc_t z_sum[RECIP_CAUSAL * G];
};

/* and where it is not: the same beginning, narrower rows */
struct recip_cache_ungated {
	TENSOR act_t past[RECIP_CROSS * T_MAX][RECIP_AVERAGE ? C : F];
};

struct recip_step_tmp {
	TENSOR act_t pre[B_MAX][F];
	TENSOR act_t h[B_MAX][F];
	TENSOR act_t mixed[RECIP_CROSS * B_MAX][F];
	TENSOR act_t y[RECIP_CROSS * B_MAX][OUT];
	TENSOR acc_t z[B_MAX][G];
	TENSOR act_t u[B_MAX][N];
	TENSOR param_t map[RECIP_SCALAR * F][A];
};

/* where a tensor's gradient lives */
#define RECIP_GRAD(a, field) GRAD((a)->dw, struct recip_param, field)
/* of a tensor that nothing reached: a tap without writer or reader */
#define RECIP_ZERO_GRAD(a, field) \
	arch_zero(RECIP_GRAD(a, field), sizeof(((struct recip_param *)0)->field) / \
		  sizeof(param_t) * sizeof(grad_t))

/**
 * struct joined - one call of forward or backward as the parts see it
 * @a: the caller's arguments
 * @n: positions, b * t
 * @rows, @cols: of the matrix in this call
 * @w: [rows][cols], row stride @ldw
 * @ldw: COLS; F where the matrix is c_proj itself
 * @x: [n][cols], row stride COLS
 * @y: [n][rows], row stride @ldy; in backward gradients of the same outputs
 * @ldy: ROWS; C where only c_proj has rows, and @y is the caller's own
 * @dw: [rows][F] gradient of the matrix's first F columns, dense
 */
struct joined {
	const struct mixer_args *a;
	int n, rows, cols;
	const param_t *w;
	long ldw;
	act_t *x;
	const act_t *y;
	long ldy;
	grad_t *dw;
};

/**
 * struct hidden - the hidden layer where it is itself formed: direct form, decode
 * @a: the caller's arguments
 * @n: rows
 * @h: [n][F] h0 at first
 * @dh: [n][F] backward: its gradient
 * @u: [n][N] gets h0 mlp_down^T
 * @c: [n][A] gets M(h0); NULL: not wanted
 * @map: [F][A] scratch of A_w or M's matrix
 * @mixed: [n][F] gets R^ h
 * @cache, @pos: decode: its state; NULL in forward and backward
 */
struct hidden {
	const struct mixer_args *a;
	int n;
	act_t *h, *dh, *u, *c;
	param_t *map;
	act_t *mixed;
	struct recip_cache *cache;
	const int32_t *pos;
};

/**
 * struct recip_part - one mechanism
 * @rows: rows it owns in this call, with @above of them above
 * @cols: columns it owns, behind h0
 * @beside: its columns of x
 * @fill: its rows of the matrix; its columns of the rows above
 * @forward: what it does with its columns of y, those of parts above being done
 * @write: its tap, all parts' forward being done
 * @backward: its columns of the gradient of y, those of parts above being done; gradients
 *	of tensors that are not in the matrix
 * @chain: from dw those of its tensors (zero where nothing reached them); adds to dw's
 *	rows above, those of parts below being done; gradients of its columns
 * @hidden: changes h, or reads it. The parts below have been there.
 * @hidden_bwd: the same backwards, dh in place
 * @outputs: decode: outputs of h that the step tmp holds
 * @step: decode: what becomes of outputs
 * @fill_cache: after a forward: decode state
 * @work: operations of forward or backward, c_proj's and the matrix's own left out
 * @work_step: operations of a step of one sequence at position @pos, those of c_fc and
 *	c_proj left out
 * @metrics: at most 3, see struct mixer
 *
 * @row is the part's first row. Any of them may be NULL. Parts are numbered from above:
 * forward, backward and outputs run downwards, write, chain, hidden and step upwards.
 */
struct recip_part {
	int (*rows)(const struct mixer_args *a, int above);
	int (*cols)(const struct mixer_args *a);
	void (*beside)(const struct joined *j);
	void (*fill)(const struct joined *j, int row);
	void (*forward)(const struct joined *j, int row);
	void (*write)(const struct joined *j, int row);
	void (*backward)(const struct joined *j, int row);
	void (*chain)(const struct joined *j, int row);
	void (*hidden)(const struct hidden *s);
	void (*hidden_bwd)(const struct hidden *s);
	void (*outputs)(const struct hidden *s);
	void (*step)(const struct hidden *s);
	void (*fill_cache)(const struct joined *j, int row, struct recip_cache *cache,
			   const int32_t *len);
	void (*work)(struct work *w, const struct joined *j, int row, bool backward);
	void (*work_step)(struct work *w, const struct mixer_args *a, int pos);
	int (*metrics)(const struct mixer_args *a, struct metric *out);
};

extern const struct recip_part recip_gate, recip_cross, recip_latent;

enum { RECIP_PARTS = 3 };
extern const struct recip_part *const recip_parts[RECIP_PARTS];

#define for_each_down(i) for (int i = 0; i < RECIP_PARTS; i++)
#define for_each_up(i) for (int i = RECIP_PARTS - 1; i >= 0; i--)
/* A verb of a part that has it. */
#define CALL(i, verb, ...) \
	do { \
		if (recip_parts[i] && recip_parts[i]->verb) \
			recip_parts[i]->verb(__VA_ARGS__); \
	} while (0)
#define CALL_ROW(i, verb, j) CALL(i, verb, j, recip_rows_above((j)->a, i))

/* recip_joined.c */

/** recip_rows_above() - rows above part @i, or with RECIP_PARTS all */
int recip_rows_above(const struct mixer_args *a, int i);
/** joined_shape() - a, n, rows and cols of a call; nothing else is set */
struct joined joined_shape(const struct mixer_args *a);
/**
 * joined_call() - all of a call but dw
 * @y: the caller's [n][C], used where only c_proj has rows
 */
struct joined joined_call(const struct mixer_args *a, const act_t *y);
/** joined_beside() - what stands beside h0 in joined_x() */
void joined_beside(const struct mixer_args *a);
/** joined_fwd() - the caller's y, and taps, from h0 in joined_x() */
void joined_fwd(const struct mixer_args *a);
/**
 * joined_bwd() - gradients of every tensor of the matrix; of h0 into tmp->bwd.dh
 * @dgelu: of GELU's input instead
 */
void joined_bwd(const struct mixer_args *a, bool dgelu);

/* A part's own rows of the matrix, and its columns of y's gradient, to be written. */
static inline param_t *joined_row(const struct joined *j, int row)
{
	return ((struct recip_tmp *)j->a->tmp)->w[row];
}

static inline act_t *joined_dy(const struct joined *j, int row)
{
	return ((struct recip_tmp *)j->a->tmp)->y[0] + row;
}

/* [n][COLS], what the joined matrix takes */
static inline act_t *joined_x(const struct mixer_args *a)
{
	return RECIP_DIRECT ? (act_t *)((struct recip_act *)a->act)->x :
			      (act_t *)((struct recip_again *)a->again)->x;
}

/**
 * recip_hidden() - after a forward: h as part @above finds it, in tmp->log.h
 */
act_t *recip_hidden(const struct mixer_args *a, const struct recip_part *above);

/* Root mean square of x[b*t][F]; waits. */
static inline double recip_rms(const struct mixer_args *a, const act_t *x)
{
	struct recip_tmp *tmp = a->tmp;
	struct stats s;

	k_stats(&tmp->log.stats, x, (size_t)a->b * a->t * F);
	arch_get(&s, &tmp->log.stats, sizeof(s));
	return s.rms;
}

#endif
