// SPDX-License-Identifier: MIT
/*
 * mamba2 - a selective state space
 *
 *     [z | x | B | C | dt] = u in_proj^T;   [x | B | C] <- SiLU(convolution + bias)
 *     dt = softplus(dt + dt_bias), alpha = exp(-dt e^A_log), one a head
 *     S_t = alpha S_(t-1) + B_t (dt_t x_t)^T,   y_t = S_t^T C_t + D x_t
 *     y <- w RMSNorm(y SiLU(z)), group by group;   out_proj
 *
 * Heads of a group share B (the recurrence's key) and C (its query); dt is not clamped. Dao and
 * Gu 2024, arXiv 2405.21060. Documentation/mamba2.md.
 */
#include <math.h>

#include "kernels_conv.h"
#include "kernels_linattn.h"
#include "linear_rnn.h"
#include "mixer.h"
#include "util.h"
#include "../linear.h"

enum {
	HEADS = CONFIG_MAMBA2_NUM_HEADS,
	P = CONFIG_MAMBA2_HEAD_DIM,
	N = CONFIG_MAMBA2_STATE_SIZE,
	GROUPS = CONFIG_MAMBA2_N_GROUPS,
	TAPS = CONFIG_MAMBA2_CONV_KERNEL,
	INNER = HEADS * P,
	MIXED = INNER + 2 * GROUPS * N,		/* columns that are convolved: x, B, C */
	AT_B = INNER,				/* where they begin there */
	AT_C = INNER + GROUPS * N,
	IN = INNER + MIXED + HEADS,		/* columns of in_proj: z, these, dt */
	AT_MIXED = INNER,
	AT_DT = INNER + MIXED,
	SHARED = LINATTN_Q | LINATTN_K,		/* by the heads of a group */
};

static_assert(INNER == CONFIG_MAMBA2_EXPAND * C && HEADS % GROUPS == 0,
	      "CONFIG_MAMBA2_NUM_HEADS * CONFIG_MAMBA2_HEAD_DIM must be CONFIG_MAMBA2_EXPAND * "
	      "CONFIG_N_EMBD, and CONFIG_MAMBA2_N_GROUPS divide the heads");

struct mamba2_param {
	TENSOR param_t in_proj[IN][C];
	TENSOR param_t conv[MIXED][TAPS];
	TENSOR param_t conv_bias[MIXED];
	TENSOR acc_t dt_bias[HEADS];
	TENSOR acc_t a_log[HEADS];
	TENSOR acc_t d[HEADS];
	TENSOR acc_t norm[INNER];
	TENSOR param_t out_proj[C][INNER];
};

static param_init_fn init_dt_bias, init_a_log;

#define LINE(field, leaf, init, fan, flags, ...) \
	PARAM(struct mamba2_param, field, leaf, init, fan, flags, __VA_ARGS__)

static const struct param mamba2_params[] = {
	LINE(in_proj, "in_proj.weight", INIT_MATRIX, 0, DECAY, IN, C),
	LINE(conv, "conv1d.weight", init_uniform, TAPS, DECAY, MIXED, 1, TAPS),
	LINE(conv_bias, "conv1d.bias", init_zero, 0, NO_DECAY, MIXED),
	LINE(dt_bias, "dt_bias", init_dt_bias, 0, WIDE, HEADS),
	LINE(a_log, "A_log", init_a_log, 0, WIDE, HEADS),
	LINE(d, "D", init_one, 0, WIDE, HEADS),
	LINE(norm, "norm.weight", init_one, 0, WIDE, INNER),
	LINE(out_proj, "out_proj.weight", INIT_OUT, 0, DECAY, C, INNER),
};

/* Steps from 0.001 to 0.1, evenly in the logarithm, through the inverse of softplus. */
static void init_dt_bias(const struct param_entry *e, size_t first, size_t n, grad_t *dst,
			 uint64_t seed)
{
	for (size_t i = 0; i < n; i++) {
		double u = rng_uniform(seed, hash_name(e->name), first + i);
		double dt = exp(log(0.001) + u * log(100));

		dst[i] = dt + log(-expm1(-dt));
	}
}

/* A from 1 to 16. */
static void init_a_log(const struct param_entry *e, size_t first, size_t n, grad_t *dst,
		       uint64_t seed)
{
	for (size_t i = 0; i < n; i++)
		dst[i] = log(1 + 15 * rng_uniform(seed, hash_name(e->name), first + i));
}

/* ---- buffers ----------------------------------------------------------------------- */

/* What forward saves of n rows; y has the skip in it, but neither gate nor norm. */
#define MAMBA2_SAVED(n)			\
	TENSOR act_t in[n][IN];		\
	TENSOR act_t y[n][INNER];

/* What can be made of it again: what is convolved, dt, g, dt x, the norm. */
#define MAMBA2_MADE(n)			\
	TENSOR act_t mixed[n][MIXED];	\
	TENSOR acc_t dt[n][HEADS];	\
	TENSOR acc_t g[n][HEADS];	\
	TENSOR act_t v[n][INNER];	\
	TENSOR acc_t rstd[n][GROUPS];	\
	TENSOR act_t out[n][INNER];

struct mamba2_act { MAMBA2_SAVED(BT) };
struct mamba2_again { MAMBA2_MADE(BT) };
struct mamba2_step_tmp { MAMBA2_SAVED(B_MAX) MAMBA2_MADE(B_MAX) };

struct mamba2_tmp {
	TENSOR act_t din[BT][IN];
	TENSOR act_t dmixed[BT][MIXED];
	TENSOR act_t dy[BT][INNER];
	TENSOR act_t dv[BT][INNER];
	TENSOR acc_t dg[BT][HEADS];
	TENSOR acc_t scratch[LINATTN_SCRATCH(B_MAX, T_MAX, HEADS, SHARED, N, P, CONFIG_LINEAR_CHUNK)];
};

/* Decode state of one sequence, whatever its length. */
struct mamba2_cache {
	TENSOR acc_t state[HEADS][N][P];
	TENSOR act_t ring[TAPS - 1][MIXED];
};

/* struct mamba2_rows - b * t rows from u to y, in a forward or a step: those members */
struct mamba2_rows {
	const struct mamba2_param *w;
	int b, t;
	act_t *in, *y, *mixed, *v, *out;
	acc_t *dt, *g, *rstd;
};

/* Those of a forward, @act and @again, or of a step, @again for both. */
#define MAMBA2_ROWS(a, act, again) ((struct mamba2_rows){				\
	.w = (a)->w, .b = (a)->b, .t = (a)->t, .in = (act)->in[0], .y = (act)->y[0],	\
	.mixed = (again)->mixed[0], .v = (again)->v[0], .out = (again)->out[0],		\
	.dt = (again)->dt[0], .g = (again)->g[0], .rstd = (again)->rstd[0] })

/* ---- its kernels' arguments ------------------------------------------------------------ */

static struct conv conv_of(const struct mamba2_rows *s)
{
	return (struct conv){ .b = s->b, .t = s->t, .c = MIXED, .taps = TAPS, .x = s->in + AT_MIXED,
			      .x_row = IN, .w = s->w->conv[0], .bias = s->w->conv_bias,
			      .y = s->mixed, .y_row = MIXED };
}

static struct ssm ssm_of(const struct mamba2_rows *s)
{
	return (struct ssm){ .n = s->b * s->t, .heads = HEADS, .p = P, .x = s->mixed,
			     .x_row = MIXED, .raw = s->in + AT_DT, .raw_row = IN,
			     .dt_bias = s->w->dt_bias, .a_log = s->w->a_log, .d = s->w->d,
			     .dt = s->dt, .g = s->g };
}

static struct linattn recurrence(const struct mamba2_rows *s)
{
	return (struct linattn){
		.b = s->b, .t = s->t, .heads = HEADS, .group = HEADS / GROUPS,
		.shared = SHARED, .dk = N, .dv = P, .chunk = CONFIG_LINEAR_CHUNK,
		.decay = LINATTN_SCALAR, .scale = 1,
		.q = s->mixed + AT_C, .q_row = MIXED, .q_head = N,
		.k = s->mixed + AT_B, .k_row = MIXED, .k_head = N,
		.v = s->v, .v_row = INNER, .v_head = P,
		.g = s->g, .g_row = HEADS, .g_head = 1, .o = s->y };
}

static struct gated_norm norm_of(const struct mamba2_rows *s)
{
	return (struct gated_norm){ .n = s->b * s->t, .groups = GROUPS, .width = INNER / GROUPS,
				    .gate_first = true, .epsilon = CONFIG_NORM_EPSILON, .x = s->y,
				    .z = s->in, .z_row = IN, .w = s->w->norm,
				    .w_group = INNER / GROUPS, .rstd = s->rstd, .y = s->out };
}

/* ---- forward and backward --------------------------------------------------------------- */

static void project(const struct mamba2_rows *s, const act_t *x)
{
	linear_fwd(s->in, x, s->w->in_proj, s->b * s->t, IN, C, 1, 0);
}

/* Behind the recurrence, which left its output in y. */
static void skip_norm_out(const struct mamba2_rows *s, act_t *y)
{
	struct ssm ssm = ssm_of(s);
	struct gated_norm norm = norm_of(s);

	k_ssm_skip(&ssm, s->y, s->y);
	k_gated_norm_fwd(&norm);
	linear_fwd(y, s->out, s->w->out_proj, s->b * s->t, C, INNER, 1, 0);
}

/* What the recurrence reads, of what was projected. */
static void operands(const struct mamba2_rows *s)
{
	struct conv conv = conv_of(s);
	struct ssm ssm = ssm_of(s);

	k_conv_fwd(&conv);
	k_ssm_fwd(&ssm, s->v);
}

static void mamba2_forward(const struct mixer_args *a)
{
	struct mamba2_act *act = a->act;
	struct mamba2_again *again = a->again;
	struct mamba2_rows s = MAMBA2_ROWS(a, act, again);
	struct linattn mix = recurrence(&s);

	project(&s, a->x);
	operands(&s);
	linear_rnn_forward(a, &mix);
	skip_norm_out(&s, a->y);
}

static void mamba2_make_again(const struct mixer_args *a)
{
	struct mamba2_act *act = a->act;
	struct mamba2_again *again = a->again;
	struct mamba2_rows s = MAMBA2_ROWS(a, act, again);
	struct gated_norm norm = norm_of(&s);

	operands(&s);
	k_gated_norm_fwd(&norm);
}

static void mamba2_backward(const struct mixer_args *a)
{
	struct mamba2_act *act = a->act;
	struct mamba2_again *again = a->again;
	struct mamba2_tmp *tmp = a->tmp;
	struct mamba2_rows s = MAMBA2_ROWS(a, act, again);
	struct conv conv = conv_of(&s);
	struct ssm ssm = ssm_of(&s);
	struct linattn mix = recurrence(&s);
	struct gated_norm norm = norm_of(&s);
	act_t *din = tmp->din[0], *dmixed = tmp->dmixed[0], *dy = tmp->dy[0], *dv = tmp->dv[0];
	acc_t *dg = tmp->dg[0];
	int n = s.b * s.t;

	linear_dw(GRAD(a->dw, struct mamba2_param, out_proj), NULL, a->dy, s.out, n, C, INNER, 1, 0);
	linear_dx(dy, a->dy, s.w->out_proj, n, C, INNER, 1, 0);
	k_gated_norm_bwd(&norm, dy, din, GRAD(a->dw, struct mamba2_param, norm), dy);
	k_linattn_bwd(&mix, &(struct linattn_grad){ .d_o = dy, .dq = dmixed + AT_C,
						    .dk = dmixed + AT_B, .dv = dv, .dg = dg,
						    .scratch = tmp->scratch });
	k_ssm_bwd(&ssm, &(struct ssm_grad){
		.dy = dy, .dv = dv, .dg = dg, .dx = dmixed, .draw = din + AT_DT,
		.ddt_bias = GRAD(a->dw, struct mamba2_param, dt_bias),
		.da_log = GRAD(a->dw, struct mamba2_param, a_log),
		.dd = GRAD(a->dw, struct mamba2_param, d) });
	k_conv_bwd(&conv, din + AT_MIXED, GRAD(a->dw, struct mamba2_param, conv),
		   GRAD(a->dw, struct mamba2_param, conv_bias), dmixed);
	linear_dw(GRAD(a->dw, struct mamba2_param, in_proj), NULL, din, a->x, n, IN, C, 1, 0);
	linear_dx(a->dx, din, s.w->in_proj, n, IN, C, 1, 0);
}

/* ---- decode -------------------------------------------------------------------------------- */

enum { SEQ_STATE = sizeof(struct mamba2_cache) / sizeof(acc_t) };

static struct cache_rows ring_of(struct mamba2_cache *cache)
{
	return (struct cache_rows){ .base = cache->ring[0],
				    .seq = sizeof(*cache) / sizeof(act_t), .row = MIXED,
				    .slots = TAPS - 1, .width = MIXED };
}

static void mamba2_step(const struct mixer_args *a, void *cache, const int32_t *pos)
{
	struct mamba2_step_tmp *tmp = a->tmp;
	struct mamba2_rows s = MAMBA2_ROWS(a, tmp, tmp);
	struct conv conv = conv_of(&s);
	struct ssm ssm = ssm_of(&s);
	struct linattn mix = recurrence(&s);
	struct cache_rows ring = ring_of(cache);

	project(&s, a->x);
	k_conv_step(&conv, &ring, pos);
	k_ssm_fwd(&ssm, s.v);
	k_linattn_step(&mix, cache, SEQ_STATE, pos);
	skip_norm_out(&s, a->y);
}

static void mamba2_fill(const struct mixer_args *a, void *cache, const int32_t *len)
{
	struct mamba2_act *act = a->act;
	struct mamba2_again *again = a->again;
	struct mamba2_rows s = MAMBA2_ROWS(a, act, again);
	struct linattn mix = recurrence(&s);
	struct cache_rows ring = ring_of(cache);

	k_cache_fill(&ring, s.in + AT_MIXED, IN, len, a->b, a->t);
	k_linattn_state(&mix, cache, SEQ_STATE, len);
}

static struct cache_size mamba2_cache_size(unsigned int has)
{
	(void)has;
	return (struct cache_size){ .size = sizeof(struct mamba2_cache) };
}

/* ---- operations ------------------------------------------------------------------------------ */

static void mamba2_work(struct work *w, int b, int t, unsigned int has, bool backward)
{
	(void)has;
	work_linear(w, b * t, IN, C, backward);
	work_linear(w, b * t, C, INNER, backward);
	linattn_work(w, b, t, HEADS, N, P, backward);
}

static void mamba2_work_step(struct work *w, int pos, unsigned int has)
{
	(void)pos, (void)has;
	work_linear(w, 1, IN, C, false);
	work_linear(w, 1, C, INNER, false);
	work_pairs(w, HEADS, 2.0 * N * P);
}

static const struct mixer mamba2 = {
	.name = "mamba2",
	.role = ROLE_ATTN,
	.params = mamba2_params,
	.nr_params = ARRAY_SIZE(mamba2_params),
	.param_size = sizeof(struct mamba2_param),
	.act_size = sizeof(struct mamba2_act),
	.again_size = sizeof(struct mamba2_again),
	.tmp_size = sizeof(struct mamba2_tmp),
	.step_tmp_size = sizeof(struct mamba2_step_tmp),
	.taps_read = mamba2_TAPS_READ,
	.taps_written = mamba2_TAPS_WRITTEN,
	.cache = mamba2_cache_size,
	.work = mamba2_work,
	.work_step = mamba2_work_step,
	.forward = mamba2_forward,
	.again = mamba2_make_again,
	.backward = mamba2_backward,
	.step = mamba2_step,
	.fill = mamba2_fill,
};
MIXER_REGISTER(mamba2);
