/* SPDX-License-Identifier: MIT */
/*
 * What the files of the recip mixer share: its parameters, its buffers, and one
 * call as its parts see it.
 */
#ifndef TENON_RECIP_H
#define TENON_RECIP_H

#include "../linear.h"
#include "../routing.h"

enum {
	RECIP_GATE = IS_ENABLED(CONFIG_RA_MLA_MLP_ATTN_GATE),
	RECIP_CAUSAL = RECIP_GATE && IS_ENABLED(CONFIG_RA_MLA_MLP_GATE_POOL_CAUSAL),
	RECIP_SEQUENCE = RECIP_GATE && IS_ENABLED(CONFIG_RA_MLA_MLP_GATE_POOL_SEQUENCE),

	RECIP_CROSS = IS_ENABLED(CONFIG_RA_MLA_MLP_CROSS_TOKEN),
	RECIP_AVERAGE = RECIP_CROSS && IS_ENABLED(CONFIG_RA_MLA_MLP_SPARSE_HEAD_AVERAGE),
	/*
	 * The folded form of mechanism 2 routes C + G outputs instead of F hidden
	 * values; it has fewer operations where BT > (C + G) F / (F - C - G).
	 */
	RECIP_FOLDED = RECIP_AVERAGE && F > C + G &&
		       (int64_t)BT * (F - C - G) > (int64_t)(C + G) * F,
	RECIP_DIRECT = RECIP_CROSS && !RECIP_FOLDED,

	RECIP_LATENT = IS_ENABLED(CONFIG_RA_MLA_MLP_LATENT_RECIP),
	RECIP_UNTIED = RECIP_LATENT && IS_ENABLED(CONFIG_RA_MLA_MLP_TYING_MODE_UNTIED),
	RECIP_TIED = RECIP_LATENT && IS_ENABLED(CONFIG_RA_MLA_MLP_TYING_MODE_TIED_TRANSPOSE),
	RECIP_SCALAR = RECIP_LATENT && IS_ENABLED(CONFIG_RA_MLA_MLP_TYING_MODE_PER_HEAD_SCALAR),
	/* the statistics of the mechanisms need a second [BT][F] */
	RECIP_LOG = IS_ENABLED(CONFIG_RA_MLA_LOG_METRICS) && (RECIP_CROSS || RECIP_LATENT),
	N = RECIP_UNTIED ? CONFIG_RA_MLA_MLP_LATENT_DIM : 0,	/* width of the untied way back */
};

struct recip_param {
	TENSOR param_t c_fc[F][C];
	TENSOR param_t c_fc_bias[F];
	TENSOR param_t c_proj[C][F];
	TENSOR param_t c_proj_bias[C];
	TENSOR param_t cross_proj[RECIP_CROSS * F][F];
	TENSOR param_t coupler[RECIP_TIED * F][L];
	TENSOR param_t attn_to_mlp[RECIP_UNTIED * F][L];
	TENSOR param_t attn_scale[RECIP_SCALAR * H];
	/* where HEAD_GATE is read */
	TENSOR param_t gate_proj[G][F];
	TENSOR param_t gate_to_heads[RECIP_GATE * H][G];
	/* where LATENT_MIX is read */
	TENSOR param_t mlp_down[N][F];
	TENSOR param_t mlp_to_attn[RECIP_UNTIED * L][N];
	TENSOR param_t mlp_scale[RECIP_SCALAR * H];
};

/* where a tensor's gradient lives */
#define RECIP_GRAD(r, field) GRAD((r)->a->dw, struct recip_param, field)
/* of a tensor that nothing reached: a tap without writer, reader or gradient */
#define RECIP_ZERO_GRAD(r, field) \
	arch_zero(RECIP_GRAD(r, field), sizeof((r)->w->field) / sizeof(param_t) * sizeof(grad_t))

/**
 * struct recip - one call of forward, backward or step
 * @a: the caller's arguments
 * @w: parameters
 * @rows: b * t
 * @gate: HEAD_GATE is read (backward: and has a gradient)
 * @cross: there is a routing
 * @up: there is a latent from attention
 * @down: LATENT_MIX is read (backward: and has a gradient)
 * @pre: [rows][F] c_fc x + bias
 * @h: [rows][F] hidden layer, changed in place: h0, + latent, + mix (direct form)
 * @u: [rows][N] h0 mlp_down^T
 * @latent_mix: [rows][L] the tap
 * @mixed: [rows][F] direct form: R^ h
 * @fold: [C + G][F] folded form: [c_proj ; gate_proj] cross_proj
 * @routed: [rows][C + G] scratch, folded form: h fold^T; in backward its gradient
 * @z: h gate_proj^T, pooled in place
 * @ldz: row stride of z, G in forward and backward
 * @z_beta: 1 where z is added to what is there
 * @gamma: [rows][H] the tap HEAD_GATE
 * @dh: [rows][F] gradient of the hidden layer, back through the parts in place
 * @dz: [rows][G]
 * @dlogit: [rows][H] gradient of the gate before the sigmoid
 * @du: [rows][N]
 * @dfold: [C + G][F]
 * @wide: [rows][F] scratch of backward: gradient of mixed, later h0
 * @stats: [2] of the tensors that a metric compares
 * @scratch: of the routing
 */
struct recip {
	const struct mixer_args *a;
	const struct recip_param *w;
	int rows;
	bool gate, cross, up, down;
	act_t *pre, *h, *u, *latent_mix;
	act_t *mixed, *fold, *routed;
	act_t *z;
	long ldz;
	int z_beta;
	act_t *gamma;
	act_t *dh, *dz, *dlogit, *du, *dfold, *wide;
	act_t *scratch;
	struct stats *stats;
};

/* recip.c: c_proj and gate_proj, which mechanism 2 folds */

/** recip_proj_fwd() - y = h c_proj^T + bias; z = h gate_proj^T */
void recip_proj_fwd(const struct recip *r);
/** recip_proj_bwd() - both weights' gradients from dy and dz; dh overwritten */
void recip_proj_bwd(const struct recip *r);

/* recip_gate.c: mechanism 1 */

/** recip_gate_fwd() - gamma from z; publishes the tap */
void recip_gate_fwd(const struct recip *r);
/** recip_gate_bwd() - gradient of gate_to_heads, and dz, from the tap's gradient */
void recip_gate_bwd(const struct recip *r);
/** recip_gate_step() - gamma of position @pos from z (causal: z is the running sum) */
void recip_gate_step(const struct recip *r, int pos);

/*
 * recip_cross.c: mechanism 2. Direct form: recip_mix_*() on h, before the
 * projections. Folded form: recip_fold_*() on y and z, after them.
 */

/** recip_mix_fwd() - h += alpha_c (R^ h) cross_proj^T */
void recip_mix_fwd(const struct recip *r);
/** recip_mix_bwd() - gradient of cross_proj; dh in place */
void recip_mix_bwd(const struct recip *r);
/** recip_fold_fwd() - [y ; z] += alpha_c R^ h fold^T */
void recip_fold_fwd(const struct recip *r);
/** recip_fold_bwd() - gradient of cross_proj; adds to dh and to both projections' gradients */
void recip_fold_bwd(const struct recip *r);
/**
 * recip_mix_step() - recip_mix_fwd() of one token
 * @past: [T_MAX][F] hidden layers of the first sequence's positions; gets this one
 * @seq: elements from sequence to sequence
 */
void recip_mix_step(const struct recip *r, act_t *past, long seq, int pos);
/**
 * recip_fold_step() - recip_fold_fwd() of one token, in either form's build
 * @past: [T_MAX][C + G, C without a gate] outputs of the first sequence's positions;
 *	gets this one
 * @seq: elements from sequence to sequence
 *
 * Overwrites r->mixed.
 */
void recip_fold_step(const struct recip *r, act_t *past, long seq, int pos);

/* recip_latent.c: mechanism 3 */

/** recip_latent_fwd() - publishes M(h0), then h = h0 + alpha_r A(latent) */
void recip_latent_fwd(const struct recip *r);
/** recip_latent_bwd() - its parameters' gradients; latent's; dh in place */
void recip_latent_bwd(const struct recip *r);

/*
 * Metrics: root mean square of what a mechanism adds to h over that of h before it.
 * Overwrite dh and wide.
 */
double recip_cross_ratio(const struct recip *r);
double recip_latent_ratio(const struct recip *r);
/** recip_ratio() - rms of @part over rms of @whole, both [rows][F] */
double recip_ratio(const struct recip *r, const act_t *part, const act_t *whole);

/* Operations of the parts, see struct mixer. */
double recip_gate_flops(int b, int t);
double recip_gate_flops_bwd(int b, int t);
double recip_cross_flops(int b, int t, bool gate);
double recip_cross_flops_bwd(int b, int t, bool gate);
double recip_latent_flops(int b, int t, bool down);
double recip_latent_flops_bwd(int b, int t, bool down);

#endif
