// SPDX-License-Identifier: MIT
/*
 * moe - a mixture of SwiGLU experts
 *
 *     g = x router^T [E];  the k largest are a token's slots;  p = softmax of these k
 *     y = shared(x) + sum over slots p_j expert_j(x)
 *
 * Only chosen experts are computed: pairs of token and slot are sorted by expert, none is
 * dropped. The balance between experts is a loss (Fedus et al. 2021, arXiv 2101.03961) and,
 * with MOE_BIAS_BALANCE, a bias on the choice that follows the loads (DeepSeek-AI 2024,
 * arXiv 2412.19437). Shazeer et al. 2017, arXiv 1701.06538; shared experts: Dai et al. 2024,
 * arXiv 2401.06066.
 */
#include <math.h>

#include "arch.h"
#include "kernels_moe.h"
#include "swiglu.h"
#include "util.h"

enum {
	E = CONFIG_NUM_EXPERTS,
	K = CONFIG_EXPERTS_PER_TOK,
	X = CONFIG_EXPERT_SIZE ? CONFIG_EXPERT_SIZE : F,	/* hidden width of an expert */
	SHARED = CONFIG_SHARED_EXPERTS > 0,
	SX = CONFIG_SHARED_EXPERTS * X,		/* that of the shared one */
	BIASED = IS_ENABLED(CONFIG_MOE_BIAS_BALANCE),
	BALANCED = CONFIG_LOAD_BALANCE_ALPHA_NONZERO,
	PAIRS = BT * K,
};

static_assert(K <= E, "lower CONFIG_EXPERTS_PER_TOK");
static_assert((int64_t)BT * K <= INT32_MAX, "lower CONFIG_BATCH_SIZE or CONFIG_BLOCK_SIZE");

struct moe_param {
	TENSOR param_t router[E][C];
	TENSOR acc_t balance_bias[BIASED * E];
	TENSOR param_t gate[E][X][C];
	TENSOR param_t up[E][X][C];
	TENSOR param_t down[E][C][X];
	TENSOR param_t shared_gate[SX][C];
	TENSOR param_t shared_up[SX][C];
	TENSOR param_t shared_down[SHARED * C][SX];
};

struct moe_act {
	TENSOR acc_t logits[BT][E];
	TENSOR int32_t slot[BT][K];
	TENSOR acc_t p[BT][K];
	TENSOR int32_t place[BT][K];
	TENSOR int32_t pair[PAIRS];
	TENSOR int32_t first[E + 1];
	TENSOR act_t gu[PAIRS][2 * X];
	TENSOR act_t shared_gu[SHARED * BT][2 * SX];
};

struct moe_again {
	TENSOR act_t shared_h[SHARED * BT][SX];
};

struct moe_tmp {
	TENSOR act_t rows[PAIRS][C];		/* x, in backward of dy and of dx */
	TENSOR act_t more[PAIRS][C];		/* outputs of experts; in backward x */
	TENSOR act_t h[PAIRS][X];
	TENSOR act_t dh[PAIRS][X];
	TENSOR act_t dgu[PAIRS][2 * X];
	TENSOR acc_t dp[PAIRS];
	TENSOR acc_t dlogits[BT][E];
	TENSOR param_t dlogits_cast[BT][E];
	TENSOR act_t shared_dgu[SHARED * BT][2 * SX];
	TENSOR act_t shared_dh[SHARED * BT][SX];
};

/* A step is a forward of b tokens. */
struct moe_step_tmp {
	TENSOR acc_t logits[B_MAX][E];
	TENSOR int32_t slot[B_MAX][K];
	TENSOR acc_t p[B_MAX][K];
	TENSOR int32_t place[B_MAX][K];
	TENSOR int32_t pair[B_MAX * K];
	TENSOR int32_t first[E + 1];
	TENSOR act_t gu[B_MAX * K][2 * X];
	TENSOR act_t shared_gu[SHARED * B_MAX][2 * SX];
	TENSOR act_t shared_h[SHARED * B_MAX][SX];
	TENSOR act_t rows[B_MAX * K][C];
	TENSOR act_t more[B_MAX * K][C];
	TENSOR act_t h[B_MAX * K][X];
};

#define EXPERTS(field, leaf, init, rows, cols) \
	PARAM(struct moe_param, field, "experts." leaf ".weight", init, 0, DECAY, E, rows, cols)
#define SHARED_EXPERT(field, leaf, init, rows) \
	PARAM(struct moe_param, field, "shared_experts." leaf ".weight", init, 0, DECAY, rows, \
	      sizeof(((struct moe_param *)0)->field[0]) / sizeof(param_t))

static const struct param moe_params[] = {
	PARAM(struct moe_param, router, "router.weight", init_normal, 0, DECAY, E, C),
	PARAM_BY_SIGN(struct moe_param, balance_bias, "router.balance_bias", CONFIG_MOE_BIAS_RATE,
		      BIASED * E),
	EXPERTS(gate, "gate_proj", init_normal, X, C),
	EXPERTS(up, "up_proj", init_normal, X, C),
	EXPERTS(down, "down_proj", init_residual, C, X),
	SHARED_EXPERT(shared_gate, "gate_proj", init_normal, SX),
	SHARED_EXPERT(shared_up, "up_proj", init_normal, SX),
	SHARED_EXPERT(shared_down, "down_proj", init_residual, SHARED * C),
};

/* Who goes where, of a forward (@s struct moe_act) or a step (struct moe_step_tmp). */
#define MOE_OF(a, s, tokens) ((struct moe){						\
	.n = tokens, .experts = E, .k = K, .logits = (s)->logits[0],			\
	.bias = BIASED ? ((const struct moe_param *)(a)->w)->balance_bias : NULL,	\
	.slot = (s)->slot[0], .p = (s)->p[0], .place = (s)->place[0], .pair = (s)->pair,	\
	.first = (s)->first })

/* One expert's products: c[rows][out] = a[rows][in] w^T (+ beta c) */
static void experts_fwd(act_t *c, long ldc, const act_t *x, const param_t *w, int out, int in,
			const struct moe *m)
{
	k_moe_gemm(&(struct gemm){ .n = out, .k = in, .tb = true, .a = x, .lda = in, .b = w,
				   .ldb = in, .sb = (long)out * in, .c = c, .ldc = ldc,
				   .alpha = 1 }, m);
}

/* dx[rows][in] = dy[rows][out] w + beta dx, row stride @ldd of dy */
static void experts_dx(act_t *dx, const act_t *dy, long ldd, const param_t *w, int out, int in,
		       double beta, const struct moe *m)
{
	k_moe_gemm(&(struct gemm){ .n = in, .k = out, .a = dy, .lda = ldd, .b = w, .ldb = in,
				   .sb = (long)out * in, .c = dx, .ldc = in, .alpha = 1,
				   .beta = beta }, m);
}

/* dw[out][in] = dy[rows][out]^T x[rows][in] */
static void experts_dw(grad_t *dw, const act_t *dy, long ldd, const act_t *x, int out, int in,
		       const struct moe *m)
{
	k_moe_gemm_grad(&(struct gemm){ .m = out, .n = in, .ta = true, .a = dy, .lda = ldd,
					.b = x, .ldb = in, .c = dw, .ldc = in,
					.sc = (long)out * in, .alpha = 1 }, m);
}

/* ---- forward -------------------------------------------------------------------- */

static struct swiglu_weights shared_weights(const struct moe_param *w)
{
	return (struct swiglu_weights){ (const param_t *)w->shared_gate,
					(const param_t *)w->shared_up,
					(const param_t *)w->shared_down };
}

static void route(const struct mixer_args *a, const struct moe *m)
{
	const struct moe_param *w = a->w;

	k_gemm_acc(&(struct gemm){ .m = m->n, .n = E, .k = C, .tb = true, .a = a->x, .lda = C,
				   .b = w->router, .ldb = C, .c = (acc_t *)m->logits, .ldc = E,
				   .alpha = 1 });
	k_moe_route(m);
}

/* y of the chosen experts, added to that of the shared one; @gu, @h, @rows, @more: [n k] */
static void experts(const struct mixer_args *a, const struct moe *m, act_t *gu, act_t *h,
		    act_t *rows, act_t *more)
{
	const struct moe_param *w = a->w;

	k_moe_gather(rows, a->x, C, m);
	experts_fwd(gu, 2L * X, rows, w->gate[0][0], X, C, m);
	experts_fwd(gu + X, 2L * X, rows, w->up[0][0], X, C, m);
	k_swiglu_fwd(h, gu, m->n * K, X);
	experts_fwd(more, C, h, w->down[0][0], C, X, m);
	k_moe_combine(a->y, more, C, true, SHARED, m);
}

/* What the balance of this sub-layer weighs: a mean over those that have moe. */
static double balance_weight(void)
{
	int n = 0;

	for (int layer = 0; layer < NL; layer++)
		n += mixer_times("moe", layer);
	return CONFIG_LOAD_BALANCE_ALPHA / n;
}

static void moe_forward(const struct mixer_args *a)
{
	const struct swiglu_weights w = shared_weights(a->w);
	struct moe_act *act = a->act;
	struct moe_again *again = a->again;
	struct moe_tmp *tmp = a->tmp;
	struct moe m = MOE_OF(a, act, a->b * a->t);

	route(a, &m);
	if (SHARED)
		swiglu_fwd(a->y, (act_t *)act->shared_gu, (act_t *)again->shared_h, a->x, &w, m.n,
			   SX);
	experts(a, &m, act->gu[0], tmp->h[0], tmp->rows[0], tmp->more[0]);
	if (BALANCED && a->aux)
		k_moe_balance(a->aux, balance_weight(), &m);
}

static void moe_make_again(const struct mixer_args *a)
{
	struct moe_act *act = a->act;
	struct moe_again *again = a->again;

	k_swiglu_fwd((act_t *)again->shared_h, (act_t *)act->shared_gu, a->b * a->t, SX);
}

/* ---- backward ------------------------------------------------------------------- */

static void shared_bwd(const struct mixer_args *a, int n)
{
	const struct swiglu_weights w = shared_weights(a->w);
	const struct swiglu_grads dw = { GRAD(a->dw, struct moe_param, shared_gate),
					 GRAD(a->dw, struct moe_param, shared_up),
					 GRAD(a->dw, struct moe_param, shared_down) };
	struct moe_act *act = a->act;
	struct moe_again *again = a->again;
	struct moe_tmp *tmp = a->tmp;

	swiglu_bwd(a->dx, 0, &dw, a->dy, (act_t *)act->shared_gu, (act_t *)again->shared_h,
		   (act_t *)tmp->shared_dgu, (act_t *)tmp->shared_dh, a->x, &w, n, SX);
}

/*
 * An expert's output is weighted, so dp = <dh, h> where dh is the gradient of h but for
 * the factor p: the outputs need not be kept.
 */
static void experts_bwd(const struct mixer_args *a, const struct moe *m)
{
	const struct moe_param *w = a->w;
	struct moe_act *act = a->act;
	struct moe_tmp *tmp = a->tmp;
	act_t *rows = tmp->rows[0], *x = tmp->more[0], *dgu = tmp->dgu[0];

	k_moe_gather(rows, a->dy, C, m);
	experts_dx(tmp->dh[0], rows, C, w->down[0][0], C, X, 0, m);
	k_moe_swiglu_bwd(dgu, tmp->h[0], tmp->dp, act->gu[0], tmp->dh[0], X, m);
	experts_dw(GRAD(a->dw, struct moe_param, down), rows, C, tmp->h[0], C, X, m);
	k_moe_gather(x, a->x, C, m);
	experts_dw(GRAD(a->dw, struct moe_param, gate), dgu, 2L * X, x, X, C, m);
	experts_dw(GRAD(a->dw, struct moe_param, up), dgu + X, 2L * X, x, X, C, m);
	experts_dx(rows, dgu, 2L * X, w->gate[0][0], X, C, 0, m);
	experts_dx(rows, dgu + X, 2L * X, w->up[0][0], X, C, 1, m);
	k_moe_combine(a->dx, rows, C, false, SHARED, m);
}

static void router_bwd(const struct mixer_args *a, const struct moe *m)
{
	const struct moe_param *w = a->w;
	struct moe_tmp *tmp = a->tmp;

	k_moe_route_bwd(tmp->dlogits[0], tmp->dp, m);
	if (BALANCED)
		k_moe_balance_bwd(tmp->dlogits[0], balance_weight(), m);
	k_cast(tmp->dlogits_cast[0], tmp->dlogits[0], (size_t)m->n * E);
	linear_dw(GRAD(a->dw, struct moe_param, router), NULL, tmp->dlogits_cast, a->x, m->n, E, C,
		  1, 0);
	linear_dx(a->dx, tmp->dlogits_cast, w->router, m->n, E, C, 1, 1);
	if (BIASED)
		k_moe_excess(GRAD(a->dw, struct moe_param, balance_bias), m);
}

static void moe_backward(const struct mixer_args *a)
{
	struct moe_act *act = a->act;
	struct moe m = MOE_OF(a, act, a->b * a->t);

	if (SHARED)
		shared_bwd(a, m.n);
	experts_bwd(a, &m);
	router_bwd(a, &m);
}

/* ---- decode, metrics, operations -------------------------------------------------- */

static void moe_step(const struct mixer_args *a, void *cache, const int32_t *pos)
{
	const struct swiglu_weights w = shared_weights(a->w);
	struct moe_step_tmp *tmp = a->tmp;
	struct moe m = MOE_OF(a, tmp, a->b);

	(void)cache;
	(void)pos;
	route(a, &m);
	if (SHARED)
		swiglu_fwd(a->y, (act_t *)tmp->shared_gu, (act_t *)tmp->shared_h, a->x, &w, m.n,
			   SX);
	experts(a, &m, tmp->gu[0], tmp->h[0], tmp->rows[0], tmp->more[0]);
}

/* -sum f ln f / ln E, and E max f */
static int moe_metrics(const struct mixer_args *a, struct metric *out)
{
	const struct moe_act *act = a->act;
	double entropy = 0, most = 0;
	int32_t first[E + 1];

	arch_get(first, act->first, sizeof(first));
	for (int e = 0; e < E; e++) {
		double f = (double)(first[e + 1] - first[e]) / first[E];

		entropy -= f > 0 ? f * log(f) : 0;
		most = MAX(most, f);
	}
	out[0] = (struct metric){ "load_entropy", entropy / log(E) };
	out[1] = (struct metric){ "load_max", E * most };
	return 2;
}

/* Experts as where their rows are equally many. */
static void moe_work(struct work *w, int b, int t, unsigned int has, bool backward)
{
	int n = b * t;

	(void)has;
	work_linear(w, n, E, C, backward);
	if (SHARED)
		swiglu_work(w, n, SX, backward);
	work_linear(w, n * K, X, C, backward);
	work_linear(w, n * K, X, C, backward);
	work_linear(w, n * K, C, X, backward);
}

static size_t moe_idle(unsigned int has)
{
	(void)has;
	return (size_t)3 * (E - K) * X * C;
}

static const struct mixer moe = {
	.name = "moe",
	.role = ROLE_MLP,
	.params = moe_params,
	.nr_params = ARRAY_SIZE(moe_params),
	.param_size = sizeof(struct moe_param),
	.act_size = sizeof(struct moe_act),
	.again_size = SHARED ? sizeof(struct moe_again) : 0,
	.tmp_size = sizeof(struct moe_tmp),
	.step_tmp_size = sizeof(struct moe_step_tmp),
	.taps_read = moe_TAPS_READ,
	.taps_written = moe_TAPS_WRITTEN,
	.aux = BALANCED,
	.regroups = true,
	.idle = moe_idle,
	.work = moe_work,
	.forward = moe_forward,
	.again = SHARED ? moe_make_again : NULL,
	.backward = moe_backward,
	.step = moe_step,
	.metrics = moe_metrics,
};
MIXER_REGISTER(moe);
