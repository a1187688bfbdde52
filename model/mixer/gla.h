/* SPDX-License-Identifier: MIT */
/*
 * What gla and mfa_gla share, which is everything but widths: the file of each says these and
 * includes this one; tensors and buffers here, what happens to them in gla_ops.h.
 *
 *     streams q, k, v = x w^T [-> short convolutions]
 *     q_h = q Q_c,h, v_h = v V_c,h where there are such maps;  k / |k| with K_NORM
 *     g = logsigmoid(z) / tau, z = x gk_proj^T + b, or through RANK
 *     o_h: the recurrence (kernels_linattn.h);  RMSNorm of each head and SiLU gate
 *     y = o o_proj^T
 *
 * Before inclusion: WIDTH_Q, WIDTH_K, WIDTH_V of the streams; KEY, VALUE widths of a head;
 * MAPS_Q, MAPS_V heads with a map, 0: the stream has every head; SHARED what heads share;
 * LEAF(x) the name of the matrix of a stream.
 */
#ifndef TENON_GLA_H
#define TENON_GLA_H

#include <string.h>

#include "kernels_linattn.h"
#include "linear_rnn.h"
#include "mixer.h"
#include "util.h"

enum {
	CONV = CONFIG_GLA_CONV,
	K_NORM = IS_ENABLED(CONFIG_GLA_K_NORM),
	OUT_NORM = IS_ENABLED(CONFIG_GLA_OUT_NORM),
	OUT_GATE = IS_ENABLED(CONFIG_GLA_OUT_GATE),
	VECTOR = IS_ENABLED(CONFIG_GLA_DECAY_VECTOR),
	GATED = VECTOR || IS_ENABLED(CONFIG_GLA_DECAY_SCALAR),	/* decays depend on x */
	GATE_HEAD = VECTOR ? KEY : 1,
	GATES = GATED * (SHARED & LINATTN_G ? 1 : H) * GATE_HEAD,
	RANK = GATED * CONFIG_GLA_GATE_RANK,
	GATE_IN = RANK ? RANK : C,	/* what the matrix of the decays reads */
	OUT = H * VALUE,
	KEYS = SHARED & LINATTN_K ? 1 : H,	/* keys of a position */
	NR_STREAMS = 3,
	STREAM_MAX = MAX(MAX(WIDTH_Q, WIDTH_K), WIDTH_V),
	VALUES_MAX = MAX(OUT, WIDTH_V),
};

static const int width_of[NR_STREAMS] = { WIDTH_Q, WIDTH_K, WIDTH_V };

struct gla_param {
	TENSOR param_t q[WIDTH_Q][C];
	TENSOR param_t k[WIDTH_K][C];
	TENSOR param_t v[WIDTH_V][C];
	TENSOR param_t q_map[MAPS_Q][WIDTH_Q][KEY];
	TENSOR param_t v_map[MAPS_V][WIDTH_V][VALUE];
	TENSOR param_t q_conv[(CONV > 0) * WIDTH_Q][CONV];
	TENSOR param_t k_conv[(CONV > 0) * WIDTH_K][CONV];
	TENSOR param_t v_conv[(CONV > 0) * WIDTH_V][CONV];
	TENSOR param_t gk_low[RANK][C];
	TENSOR param_t gk[GATES][GATE_IN];
	TENSOR param_t gk_bias[GATES];
	TENSOR param_t g_proj[OUT_GATE * OUT][C];
	TENSOR acc_t g_norm[OUT_NORM * VALUE];
	TENSOR param_t o_proj[C][OUT];
};

#define LINE(field, leaf, init, fan, flags, ...) \
	PARAM(struct gla_param, field, leaf, init, fan, flags, __VA_ARGS__)
#define CONV_LINE(x, width) \
	LINE(x##_conv, #x "_conv1d.weight", init_uniform, CONV, DECAY, (CONV > 0) * (width), 1, CONV)

static param_init_fn init_gk_bias;

static const struct param gla_params[] = {
	LINE(q, LEAF("q"), INIT_MATRIX, 0, DECAY, WIDTH_Q, C),
	LINE(k, LEAF("k"), INIT_MATRIX, 0, DECAY, WIDTH_K, C),
	LINE(v, LEAF("v"), INIT_MATRIX, 0, DECAY, WIDTH_V, C),
	LINE(q_map, "Q_c", INIT_MAP, WIDTH_Q, DECAY, MAPS_Q, WIDTH_Q, KEY),
	LINE(v_map, "V_c", INIT_MAP, WIDTH_V, DECAY, MAPS_V, WIDTH_V, VALUE),
	CONV_LINE(q, WIDTH_Q),
	CONV_LINE(k, WIDTH_K),
	CONV_LINE(v, WIDTH_V),
	LINE(gk_low, "gk_proj.0.weight", INIT_GATE, C, DECAY, RANK, C),
	LINE(gk, RANK ? "gk_proj.1.weight" : "gk_proj.weight", INIT_GATE, GATE_IN, DECAY, GATES,
	     GATE_IN),
	LINE(gk_bias, RANK ? "gk_proj.1.bias" : "gk_proj.bias", init_gk_bias, 0, NO_DECAY,
	     GATES),
	LINE(g_proj, "g_proj.weight", INIT_MATRIX, 0, DECAY, OUT_GATE * OUT, C),
	LINE(g_norm, "g_norm.weight", init_one, 0, WIDE, OUT_NORM * VALUE),
	LINE(o_proj, "o_proj.weight", INIT_OUT, 0, DECAY, C, OUT),
};

static void init_gk_bias(const struct param_entry *e, size_t first, size_t n, grad_t *dst,
			   uint64_t seed)
{
	(void)e, (void)first, (void)seed;
	for (size_t i = 0; i < n; i++)
		dst[i] = CONFIG_GLA_GATE_BIAS;
}

/* ---- buffers ----------------------------------------------------------------------- */

/* What forward saves of n rows: streams before convolutions, what comes of a product, o. */
#define GLA_SAVED(n)						\
	TENSOR act_t q[n][WIDTH_Q];				\
	TENSOR act_t k[n][WIDTH_K];				\
	TENSOR act_t v[n][WIDTH_V];				\
	TENSOR act_t q_heads[(MAPS_Q > 0) * (n)][H * KEY];	\
	TENSOR act_t v_heads[(MAPS_V > 0) * (n)][OUT];		\
	TENSOR act_t low[n][RANK];				\
	TENSOR act_t z[n][GATES];				\
	TENSOR act_t gate[OUT_GATE * (n)][OUT];			\
	TENSOR act_t o[n][OUT];

/* What can be made of it again. */
#define GLA_MADE(n)						\
	TENSOR act_t q_conv[(CONV > 0) * (n)][WIDTH_Q];		\
	TENSOR act_t k_conv[(CONV > 0) * (n)][WIDTH_K];		\
	TENSOR act_t v_conv[(CONV > 0) * (n)][WIDTH_V];		\
	TENSOR act_t unit[K_NORM * (n)][WIDTH_K];		\
	TENSOR acc_t g[n][GATES];				\
	TENSOR acc_t rstd[OUT_NORM * (n)][H];			\
	TENSOR act_t out[(OUT_NORM || OUT_GATE) * (n)][OUT];

struct gla_act { GLA_SAVED(BT) };
struct gla_again { GLA_MADE(BT) };
struct gla_step_tmp { GLA_SAVED(B_MAX) GLA_MADE(B_MAX) };

struct gla_tmp {
	TENSOR act_t d_o[BT][OUT];
	TENSOR act_t dgate[OUT_GATE * BT][OUT];
	TENSOR act_t dq[BT][H * KEY];
	TENSOR act_t dk[BT][WIDTH_K];
	TENSOR act_t dv[BT][VALUES_MAX];
	TENSOR act_t dstream[(MAPS_Q > 0 || MAPS_V > 0) * BT][STREAM_MAX];
	TENSOR acc_t dg[BT][GATES];
	TENSOR act_t dz[BT][GATES];
	TENSOR act_t dlow[BT][RANK];
	TENSOR acc_t scratch[LINATTN_SCRATCH(B_MAX, T_MAX, H, SHARED, KEY, VALUE,
					      CONFIG_LINEAR_CHUNK)];
};

/* Decode state of one sequence, whatever its length; the rings hold the streams. */
struct gla_cache {
	TENSOR acc_t state[H][KEY][VALUE];
	TENSOR act_t q[CONV ? CONV - 1 : 0][WIDTH_Q];
	TENSOR act_t k[CONV ? CONV - 1 : 0][WIDTH_K];
	TENSOR act_t v[CONV ? CONV - 1 : 0][WIDTH_V];
};

/*
 * struct gla_rows - b * t rows from x to y, in a forward or a step
 * @stream: of each, as x gives it
 * @conv: convolved; without convolutions the streams themselves
 * @q, @k, @v: what the recurrence reads
 * @out: what o_proj reads
 * others: the members of that name
 */
struct gla_rows {
	const struct gla_param *w;
	int b, t;
	const act_t *x;
	act_t *stream[NR_STREAMS], *conv[NR_STREAMS], *q, *k, *v, *low, *z, *gate, *o, *out;
	acc_t *g, *rstd;
};

/* Those of a forward, @act and @again, or of a step, @again for both. */
#define GLA_ROWS(a, act, again) ({							\
	struct gla_rows s_ = { .w = (a)->w, .b = (a)->b, .t = (a)->t, .x = (a)->x,	\
		.stream = { (act)->q[0], (act)->k[0], (act)->v[0] },			\
		.low = (act_t *)(act)->low, .z = (act_t *)(act)->z,			\
		.gate = (act_t *)(act)->gate, .o = (act)->o[0],				\
		.g = (acc_t *)(again)->g, .rstd = (acc_t *)(again)->rstd };		\
	memcpy(s_.conv, s_.stream, sizeof(s_.conv));					\
	if (CONV) {									\
		s_.conv[0] = (act_t *)(again)->q_conv;					\
		s_.conv[1] = (act_t *)(again)->k_conv;					\
		s_.conv[2] = (act_t *)(again)->v_conv;					\
	}										\
	s_.q = MAPS_Q ? (act_t *)(act)->q_heads : s_.conv[0];				\
	s_.k = K_NORM ? (act_t *)(again)->unit : s_.conv[1];				\
	s_.v = MAPS_V ? (act_t *)(act)->v_heads : s_.conv[2];				\
	s_.out = OUT_NORM || OUT_GATE ? (act_t *)(again)->out : s_.o;			\
	s_; })

#include "gla_ops.h"

#endif
