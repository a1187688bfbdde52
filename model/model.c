// SPDX-License-Identifier: MIT
/*
 * The stack: embedding, sub-layers with their norms and the residual add, the head with
 * its loss; forward and backward.
 *
 * m->dx is the gradient of the residual stream. It is the gradient of every
 * mixer's output as it stands, since x += y, but for what drops out.
 */
#include "stack.h"
#include "util.h"

/* What sub-layer s reads, of the values written last. */
void stack_taps(const struct model *m, int s, const void *const *written, const void **in)
{
	for (int tap = 0; tap < NR_TAPS; tap++) {
		const void *value = m->replay && taps[tap].detached ? m->replay[s].value[tap] :
								      written[tap];

		in[tap] = m->sub[s].from[tap] >= 0 ? value : NULL;
	}
}

struct mixer_args stack_args(const struct model *m, int s, int b, int t)
{
	const struct sublayer *sub = &m->sub[s];

	return (struct mixer_args){
		.b = b,
		.t = t,
		.layer = sub->layer,
		.has = sub->has,
		.w = m->w + sub->param,
		.dw = m->dw ? m->dw + sub->param : NULL,
		.act = m->act[s],
		.again = m->again[s],
		.host = m->host[s],
		.tmp = m->tmp,
	};
}

/* The rows that sub-layer s writes and somebody reads. */
static void stack_out(const struct model *m, int s, void **out)
{
	for (int tap = 0; tap < NR_TAPS; tap++)
		out[tap] = m->sub[s].has & 1u << tap && taps[tap].width ? m->tap[s][tap] : NULL;
}

/* ---- forward --------------------------------------------------------------- */

/* Residual add of @y, NULL: it was added, then the norm. */
static void forward_norm(const struct model *m, int s, const act_t *y, int n)
{
	struct norm norm = stack_norm(m, s, n);

	norm.x = y ? m->x[s - 1] : m->x[s];
	norm.y = y;
	norm.xo = m->x[s];
	norm.xn = m->xn[s];
	norm.mean = RMS ? NULL : m->stat[s]->mean;
	norm.rstd = m->stat[s]->rstd;
	k_add_norm_fwd(&norm);
}

/* dst may be src. */
static void drop(const struct model *m, int s, act_t *dst, const act_t *src)
{
	k_dropout(dst, src, (size_t)m->b * m->t * C, (size_t)BT * C, CONFIG_RESID_DROPOUT,
		  m->sub[s].stream, &m->input->draw);
}

/* @a: with in, publish and aux */
static void forward_mixer(const struct model *m, int s, struct mixer_args *a, bool train)
{
	a->x = m->xn[s];
	a->y = m->y;
	stack_out(m, s, a->out);
	m->sub[s].mixer->forward(a);
	if (DROPOUT && train && m->drops)
		drop(m, s, m->y, m->y);
}

static void forward_sub(struct model *m, int s, struct tap_values *written, bool train,
			const int32_t *len)
{
	struct mixer_args a = stack_args(m, s, m->b, m->t);

	stack_taps(m, s, written->value, a.in);
	for (int tap = 0; tap < NR_TAPS; tap++)
		m->taps[s].value[tap] = a.in[tap];
	a.publish = written->value;
	a.aux = train && m->sub[s].mixer->aux ? m->aux : NULL;
	forward_mixer(m, s, &a, train);
	for (int tap = 0; tap < NR_TAPS; tap++)
		if (a.out[tap])
			written->value[tap] = a.out[tap];
	if (len && m->sub[s].mixer->fill)
		m->sub[s].mixer->fill(&a, m->cache[s], len);
}

void stack_forward(struct model *m, bool train, const int32_t *len)
{
	const struct embed_param *w = stack_embed(m);
	struct tap_values written = { };
	int n = m->b * m->t;

	k_embed_fwd(m->x[0], m->input->tok, NULL, w->wte[0], POSITIONS ? w->wpe[0] : NULL,
		    m->b, m->t, C);
	for (int s = 0; s < NR_SUB; s++) {
		forward_norm(m, s, s ? m->y : NULL, n);
		forward_sub(m, s, &written, train, len);
	}
	forward_norm(m, NR_SUB, m->y, n);
}

/* Gradients of the head's weight (first rows overwrite) and of its input. */
static void head_backward(struct model *m, int row0, int n)
{
	grad_t *dw = TIED ? GRAD(m->dw, struct embed_param, wte) :
			    GRAD(m->dw + m->head, struct head_param, lm_head);

	k_gemm_grad(&(struct gemm){
		.m = V, .n = C, .k = n, .ta = true, .a = m->logits, .lda = V,
		.b = m->xn[NR_SUB] + (size_t)row0 * C, .ldb = C, .c = dw, .ldc = C, .alpha = 1,
		.beta = row0 > 0 });
	k_gemm(&(struct gemm){
		.m = n, .n = C, .k = V, .a = m->logits, .lda = V, .b = stack_head(m), .ldb = C,
		.c = m->y + (size_t)row0 * C, .ldc = C, .alpha = 1 });
}

static void head_forward(struct model *m, bool backward)
{
	int rows = m->b * m->t;

	for (int row0 = 0; row0 < rows; row0 += HEAD_ROWS) {
		int n = MIN((int)HEAD_ROWS, rows - row0);
		struct gemm g = stack_logits(m, m->xn[NR_SUB] + (size_t)row0 * C, n);

		g.c = m->logits;
		k_gemm(&g);
		k_xent(m->row_loss + row0, m->logits, m->input->target + row0, n, V,
		       CONFIG_VOCAB_SIZE, &m->input->scored, backward);
		if (backward)
			head_backward(m, row0, n);
	}
	k_loss_mean(m->loss, m->row_loss, rows, &m->input->scored);
}

void model_forward(struct model *m, bool backward)
{
	arch_zero(m->aux, sizeof(*m->aux));
	stack_forward(m, backward, NULL);
	head_forward(m, backward);
}

/* ---- again ----------------------------------------------------------------- */

/* The forward of one sub-layer once more, where it stands, on what it read then. */
static void forward_again(const struct model *m, int s)
{
	struct mixer_args a = stack_args(m, s, m->b, m->t);
	struct tap_values written;

	forward_norm(m, s, s > m->sub[s].first ? m->y : NULL, m->b * m->t);
	for (int tap = 0; tap < NR_TAPS; tap++)
		a.in[tap] = m->taps[s].value[tap];
	a.publish = written.value;
	a.aux = m->sub[s].mixer->aux ? m->aux + 1 : NULL;
	forward_mixer(m, s, &a, true);
}

/* The output of the norm, and what the mixer can make of what was saved. */
static void saved_again(const struct model *m, int s)
{
	struct mixer_args a = stack_args(m, s, m->b, m->t);

	forward_norm(m, s, NULL, m->b * m->t);
	if (!m->sub[s].mixer->again)
		return;
	a.x = m->xn[s];
	for (int tap = 0; tap < NR_TAPS; tap++)
		a.in[tap] = m->taps[s].value[tap];
	m->sub[s].mixer->again(&a);
}

/* What sub-layers first to last left in forward, where it is kept no longer. */
static void make_again(const struct model *m, int first, int last)
{
	for (int s = first; s <= last && m->phase == PHASE_TRAIN; s++) {
		if (m->recompute == RECOMPUTE_BLOCK)
			forward_again(m, s);
		else if (m->recompute == RECOMPUTE_ACTIVATIONS)
			saved_again(m, s);
	}
}

/* Before the backward of sub-layer @s. The last segment is as forward left it. */
static void backward_again(const struct model *m, int s)
{
	if (m->recompute != RECOMPUTE_BLOCK)
		make_again(m, s, s);
	else if (s + 1 < NR_SUB && m->sub[s + 1].first == s + 1)
		make_again(m, m->sub[s].first, s);
}

double model_loss(struct model *m)
{
	double loss;

	arch_get(&loss, m->loss, sizeof(loss));
	return loss;
}

const acc_t *model_row_loss(const struct model *m)
{
	return m->row_loss;
}

const acc_t *model_logits(struct model *m, int row0, int n)
{
	struct gemm g = stack_logits(m, m->xn[NR_SUB] + (size_t)row0 * C, n);

	g.c = m->logits;
	k_gemm_acc(&g);
	k_mask_padding(g.c, n, V, CONFIG_VOCAB_SIZE);
	return g.c;
}

const int32_t *model_best(struct model *m, int row0, int n)
{
	k_argmax(m->best, model_logits(m, row0, n), n, V, CONFIG_VOCAB_SIZE);
	return m->best;
}

bool model_has_aux(const struct model *m)
{
	for (int s = 0; s < NR_SUB; s++)
		if (m->sub[s].mixer->aux)
			return true;
	return false;
}

int model_metrics(const struct model *m, int s, struct metric *out)
{
	struct mixer_args a = stack_args(m, s, m->b, m->t);

	if (!m->sub[s].mixer->metrics)
		return 0;
	make_again(m, m->recompute == RECOMPUTE_BLOCK ? m->sub[s].first : s, s);
	a.x = m->xn[s];
	stack_out(m, s, a.out);
	for (int tap = 0; tap < NR_TAPS; tap++)
		a.in[tap] = m->taps[s].value[tap];
	return m->sub[s].mixer->metrics(&a, out);
}

/* ---- backward -------------------------------------------------------------- */

/* m->y holds the gradient of the norm's output; behind the last norm there is no residual. */
static void backward_norm(struct model *m, int s)
{
	struct norm norm = stack_norm(m, s, m->b * m->t);
	grad_t *dw = m->dw + (s < NR_SUB ? m->sub[s].norm : m->ln_f);

	norm.x = m->x[s];
	norm.mean = RMS ? NULL : m->stat[s]->mean;
	norm.rstd = m->stat[s]->rstd;
	k_norm_bwd(&norm, m->dx, s < NR_SUB ? m->dx : NULL, m->y,
		   GRAD(dw, struct norm_param, weight),
		   RMS ? NULL : GRAD(dw, struct norm_param, bias));
}

static void backward_sub(struct model *m, int s)
{
	struct mixer_args a = stack_args(m, s, m->b, m->t);

	a.x = m->xn[s];
	a.dy = DROPOUT && m->drops ? m->dy : m->dx;
	a.dx = m->y;
	if (DROPOUT && m->drops)
		drop(m, s, m->dy, m->dx);
	stack_out(m, s, a.out);
	for (int tap = 0; tap < NR_TAPS; tap++) {
		a.in[tap] = m->taps[s].value[tap];
		a.din[tap] = m->sub[s].from[tap] >= 0 ? m->dtap[tap] : NULL;
		a.dout[tap] = m->sub[s].has & 1u << tap ? m->dtap[tap] : NULL;
	}
	m->sub[s].mixer->backward(&a);
}

static void backward_embed(struct model *m)
{
	grad_t *dwte = GRAD(m->dw, struct embed_param, wte);

	if (!TIED)
		arch_zero(dwte, sizeof(*dwte) * V * C);
	k_embed_bwd(dwte, POSITIONS ? GRAD(m->dw, struct embed_param, wpe) : NULL, m->dx,
		    m->input->tok, m->input->order, m->b, m->t, WPE, C, m->embed_scratch);
}

static void ready_range(grad_ready_fn *ready, void *ctx, size_t from, size_t to)
{
	if (ready)
		ready(ctx, from, to - from);
}

void model_backward(struct model *m, grad_ready_fn *ready, void *ctx)
{
	backward_norm(m, NR_SUB);
	ready_range(ready, ctx, m->ln_f, m->param_elems);
	for (int s = NR_SUB - 1; s >= 0; s--) {
		const struct sublayer *sub = &m->sub[s];

		backward_again(m, s);
		backward_sub(m, s);
		backward_norm(m, s);
		ready_range(ready, ctx, sub->norm, sub->param + sub->elems);
	}
	backward_embed(m);
	ready_range(ready, ctx, 0, m->sub[0].norm);
}
