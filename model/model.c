// SPDX-License-Identifier: MIT
/*
 * The stack: embedding, sub-layers with their norms and the residual add, the
 * tied head with its loss; forward, backward, and one token through the caches.
 *
 * m->dx is the gradient of the residual stream. It is the gradient of every
 * mixer's output as it stands, since x += y.
 */
#include <stdlib.h>

#include "arch.h"
#include "model.h"
#include "util.h"

static const struct embed_param *embed_w(const struct model *m)
{
	return (const struct embed_param *)m->w;
}

static const struct norm_param *norm_w(const struct model *m, int s)
{
	return (const struct norm_param *)(m->w + (s < NR_SUB ? m->sub[s].norm : m->ln_f));
}

void model_init_params(struct model *m, uint64_t seed)
{
	enum { PIECE = 1 << 18 };	/* elements on the host at a time */
	param_t *host = xmalloc(PIECE * sizeof(*host));

	for (int i = 0; i < m->nr_entries; i++) {
		const struct param_entry *e = &m->entries[i];

		for (size_t at = 0, n; at < e->numel; at += n) {
			n = MIN(e->numel - at, (size_t)PIECE);
			param_init(e, at, n, host, seed);
			arch_put(m->w + e->offset + at, host, n * sizeof(*host));
		}
	}
	free(host);
}

/* ---- taps ------------------------------------------------------------------ */

static void take(struct taps *in, const struct taps *from, unsigned int bit)
{
	switch (bit) {
	case TAP_HEAD_GATE:
		in->head_gate = from->head_gate;
		break;
	case TAP_LATENT:
		in->latent = from->latent;
		break;
	case TAP_LATENT_MIX:
		in->latent_mix = from->latent_mix;
		break;
	case TAP_ROUTE:
		in->route = from->route;
		in->has_route = true;
		break;
	}
}

/* What sub-layer s reads, of the values written last. */
static struct taps taps_in(const struct model *m, int s, const struct taps *written)
{
	struct taps in = { .has_route = false };

	for (int tap = 0; tap < NR_TAPS; tap++) {
		unsigned int bit = 1u << tap;
		bool replay = m->replay && (bit & TAPS_DETACHED);

		if (m->sub[s].from[tap] >= 0)
			take(&in, replay ? &m->replay[s] : written, bit);
	}
	return in;
}

/* Gradient buffers of the taps in a mask. */
static struct tap_grads tap_grads(const struct model *m, unsigned int taps)
{
	taps &= ~TAPS_DETACHED;
	return (struct tap_grads){
		.head_gate = taps & TAP_HEAD_GATE ? m->dtap.head_gate : NULL,
		.latent = taps & TAP_LATENT ? m->dtap.latent : NULL,
		.latent_mix = taps & TAP_LATENT_MIX ? m->dtap.latent_mix : NULL,
	};
}

static unsigned int taps_wired(const struct sublayer *sub)
{
	unsigned int taps = 0;

	for (int tap = 0; tap < NR_TAPS; tap++)
		if (sub->from[tap] >= 0)
			taps |= 1u << tap;
	return taps;
}

/* ---- forward --------------------------------------------------------------- */

static struct mixer_args sub_args(const struct model *m, int s, int b, int t)
{
	const struct sublayer *sub = &m->sub[s];

	return (struct mixer_args){
		.b = b,
		.t = t,
		.read = sub->read,
		.w = m->w + sub->param,
		.dw = m->dw ? m->dw + sub->param : NULL,
		.act = m->act[s],
		.tmp = m->tmp,
	};
}

/* Residual add of what the sub-layer before left in m->y, then the norm. */
static void forward_norm(struct model *m, int s, int n)
{
	struct norm_act *a = m->norm[s];
	const struct norm_param *w = norm_w(m, s);

	k_add_norm_fwd(a->x[0], a->xn[0], a->mean, a->rstd, s ? m->norm[s - 1]->x[0] : a->x[0],
		       s ? m->y : NULL, w->weight, w->bias, n, C);
}

static void forward_sub(struct model *m, int s, int b, int t, struct taps *written)
{
	struct mixer_args a = sub_args(m, s, b, t);

	a.x = m->norm[s]->xn[0];
	a.y = m->y;
	m->taps[s] = a.in = taps_in(m, s, written);
	a.out = written;
	m->sub[s].mixer->forward(&a);
}

/* n rows of logits, from row row0 on. */
static void head_logits(struct model *m, const act_t *xn, int n)
{
	k_gemm(&(struct gemm){
		.m = n, .n = V, .k = C, .tb = true, .a = xn, .lda = C,
		.b = embed_w(m)->wte, .ldb = C, .c = m->logits, .ldc = V, .alpha = 1 });
}

/* Gradients of the head's weight (first rows overwrite) and of its input. */
static void head_backward(struct model *m, int row0, int n)
{
	const act_t *xn = m->norm[NR_SUB]->xn[row0];

	k_gemm_grad(&(struct gemm){
		.m = V, .n = C, .k = n, .ta = true, .a = m->logits, .lda = V, .b = xn, .ldb = C,
		.c = GRAD(m->dw, struct embed_param, wte), .ldc = C, .alpha = 1,
		.beta = row0 > 0 });
	k_gemm(&(struct gemm){
		.m = n, .n = C, .k = V, .a = m->logits, .lda = V, .b = embed_w(m)->wte, .ldb = C,
		.c = m->y + (size_t)row0 * C, .ldc = C, .alpha = 1 });
}

static void head_forward(struct model *m, int b, int t, bool backward)
{
	int rows = b * t;

	for (int row0 = 0; row0 < rows; row0 += HEAD_ROWS) {
		int n = MIN(HEAD_ROWS, rows - row0);

		head_logits(m, m->norm[NR_SUB]->xn[row0], n);
		k_xent(m->row_loss + row0, m->logits, m->tok + 1, t, t + 1, row0, n, V,
		       CONFIG_VOCAB_SIZE, backward ? 1.0 / rows : 0);
		if (backward)
			head_backward(m, row0, n);
	}
	k_mean(m->loss, m->row_loss, rows);
}

void model_forward(struct model *m, const int32_t *tok, int b, int t, bool backward)
{
	const struct embed_param *w = embed_w(m);
	struct taps written = { .has_route = false };

	arch_put(m->tok, tok, sizeof(*tok) * b * (t + 1));
	k_embed_fwd(m->norm[0]->x[0], m->tok, t + 1, w->wte[0], w->wpe[0], b, t, 0, C);
	for (int s = 0; s < NR_SUB; s++) {
		forward_norm(m, s, b * t);
		forward_sub(m, s, b, t, &written);
	}
	forward_norm(m, NR_SUB, b * t);
	head_forward(m, b, t, backward);
}

double model_loss(struct model *m)
{
	double loss;

	arch_get(&loss, m->loss, sizeof(loss));
	return loss;
}

const act_t *model_logits(struct model *m, int row0, int n)
{
	head_logits(m, m->norm[NR_SUB]->xn[row0], n);
	k_mask_padding(m->logits, n, V, CONFIG_VOCAB_SIZE);
	return m->logits;
}

/* ---- backward -------------------------------------------------------------- */

/* m->y holds the gradient of the norm's output. */
static void backward_norm(struct model *m, int s, int n)
{
	struct norm_act *a = m->norm[s];
	grad_t *dw = m->dw + (s < NR_SUB ? m->sub[s].norm : m->ln_f);

	k_norm_bwd(m->dx, GRAD(dw, struct norm_param, weight), GRAD(dw, struct norm_param, bias),
		   m->y, a->x[0], a->mean, a->rstd, norm_w(m, s)->weight, n, C);
}

static void backward_sub(struct model *m, int s, int b, int t)
{
	struct mixer_args a = sub_args(m, s, b, t);

	a.x = m->norm[s]->xn[0];
	a.dy = m->dx;
	a.dx = m->y;
	a.in = m->taps[s];
	a.din = tap_grads(m, taps_wired(&m->sub[s]));
	a.dout = tap_grads(m, m->sub[s].read);
	m->sub[s].mixer->backward(&a);
}

void model_backward(struct model *m, int b, int t)
{
	arch_zero(m->dx, sizeof(act_t) * b * t * C);
	backward_norm(m, NR_SUB, b * t);
	for (int s = NR_SUB - 1; s >= 0; s--) {
		backward_sub(m, s, b, t);
		backward_norm(m, s, b * t);
	}
	k_embed_bwd(GRAD(m->dw, struct embed_param, wte), GRAD(m->dw, struct embed_param, wpe),
		    m->dx, m->tok, t + 1, b, t, T_MAX, C, m->order);
}

/* ---- decode ---------------------------------------------------------------- */

static void step_norm(struct model *m, int s, int b)
{
	const struct norm_param *w = norm_w(m, s);

	k_add_norm_fwd(m->step_x, m->step_xn, m->step_stat, m->step_stat + m->sequences, m->step_x,
		       s ? m->y : NULL, w->weight, w->bias, b, C);
}

static void step_sub(struct model *m, int s, int b, int pos)
{
	struct mixer_args a = sub_args(m, s, b, 1);

	a.x = m->step_xn;
	a.y = m->y;
	a.in = taps_in(m, s, &m->step_out);
	a.out = &m->step_out;
	m->sub[s].mixer->step(&a, m->cache[s], pos);
}

const act_t *model_step(struct model *m, const int32_t *tok, int b, int pos)
{
	const struct embed_param *w = embed_w(m);

	arch_put(m->tok, tok, sizeof(*tok) * b);
	k_embed_fwd(m->step_x, m->tok, 1, w->wte[0], w->wpe[0], b, 1, pos, C);
	for (int s = 0; s < NR_SUB; s++) {
		step_norm(m, s, b);
		step_sub(m, s, b, pos);
	}
	step_norm(m, NR_SUB, b);
	head_logits(m, m->step_xn, b);
	k_mask_padding(m->logits, b, V, CONFIG_VOCAB_SIZE);
	return m->logits;
}
