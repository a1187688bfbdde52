// SPDX-License-Identifier: MIT
/*
 * Linear recurrences backward. A thread has a sequence and those heads that share anything.
 * States are swept once and kept at the start of each chunk; then, from the last chunk to
 * the first, those of a chunk's blocks are made again and its blocks go backwards. States
 * and their gradients stand transposed, [dv][kw]: as all but one product want them.
 */
#include <string.h>

#include "linattn.h"
#include "util.h"

/* What a thread works with, one head at a time. */
struct back {
	const struct linattn *a;
	const struct linattn_grad *d;
	int i, h;
	struct linblock s;
	acc_t *states;		/* [chunk / ROWS + 1][dv][kw] around the blocks of a chunk */
	acc_t *d_o;		/* [ROWS][vw] */
	acc_t *vt;		/* [vw][ROWS] values, then the gradient of values, transposed */
	acc_t *kft;		/* [kw][ROWS] */
	acc_t (*da)[ROWS];	/* of the scores */
	acc_t *far, *near;	/* [ROWS][kw] parts of the gradients of q or k */
	acc_t *own;		/* [ROWS][kw] q dq - k dk */
	acc_t *dq, *dk, *dg;	/* [chunk][kw] sums over the heads so far */
	acc_t *dv;		/* [chunk][vw] */
};

static int chunks(const struct linattn *a)
{
	return (a->t + a->chunk - 1) / a->chunk;
}

static size_t state_elems(const struct back *w)
{
	return (size_t)w->a->dv * w->s.kw;
}

/* Of the current head: states at chunks' starts, and behind them the gradient of one. */
static acc_t *kept(const struct back *w, int chunk)
{
	const struct linattn *a = w->a;
	size_t one = (size_t)a->dv * LINATTN_WIDTH(a->dk), head = (size_t)w->i * a->heads + w->h;

	return w->d->scratch + (head * (chunks(a) + 1) + chunk) * one;
}

static acc_t *dstate_of(const struct back *w)
{
	return kept(w, chunks(w->a));
}

static void back_place(struct back *w)
{
	const struct linattn *a = w->a;
	size_t kw = tile_width(a->dk), vw = tile_width(a->dv), chunk = a->chunk;
	size_t blocks = chunk / ROWS, state = a->dv * kw;
	acc_t *p = tile_scratch(linblock_elems(a) + (blocks + 1) * state +
				ROWS * (2 * vw + 4 * kw + ROWS) + chunk * (3 * kw + vw));

	p = linblock_place(&w->s, a, p);
	w->states = p;
	w->d_o = p + (blocks + 1) * state;
	w->vt = w->d_o + ROWS * vw;
	w->kft = w->vt + ROWS * vw;
	w->far = w->kft + ROWS * kw;
	w->near = w->far + ROWS * kw;
	w->own = w->near + ROWS * kw;
	w->da = (void *)(w->own + ROWS * kw);
	w->dq = w->own + ROWS * (kw + ROWS);
	w->dk = w->dq + chunk * kw;
	w->dg = w->dk + chunk * kw;
	w->dv = w->dg + chunk * kw;
}

/* ---- states, transposed ------------------------------------------------------------ */

/* dst [dv][kw] = src [dk][dv], or 0 */
static void state_begin(const struct back *w, acc_t *dst, const acc_t *src)
{
	const struct linattn *a = w->a;

	memset(dst, 0, state_elems(w) * sizeof(*dst));
	if (!src)
		return;
	src += ((size_t)w->i * a->heads + w->h) * a->dk * a->dv;
	for (int c = 0; c < a->dk; c++)
		for (int e = 0; e < a->dv; e++)
			dst[(long)e * w->s.kw + c] = src[(long)c * a->dv + e];
}

/* dst = diag(end) src + x^T y, x [ROWS][vw], y [ROWS][kw]; dst may be src */
static void state_pass(const struct back *w, acc_t *dst, const acc_t *src, const acc_t *x,
		       const acc_t *y)
{
	int kw = w->s.kw;

	for (int e = 0; e < w->a->dv; e++)
#pragma omp simd
		for (int c = 0; c < kw; c++)
			dst[(long)e * kw + c] = src[(long)e * kw + c] * w->s.end[c];
	tile_mul(&(struct tile_mul){ .m = w->a->dv, .n = kw, .k = ROWS, .a = x, .a_row = 1,
				     .a_col = w->s.vw, .b = y, .ldb = kw, .c = dst, .ldc = kw,
				     .add = true });
}

/* From @state at @t0 over the blocks before @end; @next: elements to where the next one goes. */
static void sweep(struct back *w, acc_t *state, size_t next, int t0, int end)
{
	for (; t0 < end; t0 += ROWS, state += next) {
		linblock_load_keys(&w->s, w->a, w->i, w->h, t0, linattn_rows(t0, end));
		state_pass(w, state + next, state, w->s.v, w->s.kf);
	}
}

/* Keeps the state of each chunk's start; the gradient of the last one begins. */
static void head_begin(struct back *w)
{
	const struct linattn *a = w->a;
	acc_t *state = w->states;

	state_begin(w, state, a->s0);
	memcpy(kept(w, 0), state, state_elems(w) * sizeof(*state));
	for (int n = 1; n < chunks(a); n++) {
		sweep(w, state, 0, (n - 1) * a->chunk, n * a->chunk);
		memcpy(kept(w, n), state, state_elems(w) * sizeof(*state));
	}
	state_begin(w, dstate_of(w), w->d->ds1);
}

/* ---- a block backwards --------------------------------------------------------------- */

/*
 * out_t = sum over u <= t of w_tu x_u and the alphas of u + 1 .. t, rows of @ld elements. The
 * x decay in registers, a vector of columns at a time. Backwards in time strides are negative.
 */
static void decayed_sums(acc_t *out, const acc_t *w, long w_row, long w_col, const acc_t *x,
			 const acc_t *alpha, long ld, int width)
{
	for (int c = 0; c < width; c += LANES) {
		tile_vec now[ROWS];

#pragma GCC unroll 16
		for (int t = 0; t < ROWS; t++) {
			tile_vec sum = {}, decay = {};

			if (t)
				decay = *(const tile_vec *)(alpha + t * ld + c);
#pragma GCC unroll 16
			for (int u = 0; u < t; u++) {
				now[u] *= decay;
				sum += now[u] * w[t * w_row + u * w_col];
			}
			now[t] = *(const tile_vec *)(x + t * ld + c);
			*(tile_vec *)(out + t * ld + c) = sum + now[t] * w[t * (w_row + w_col)];
		}
	}
}

/* da[t][u] = <d_o_t, v_u> for u <= t, else 0 */
static void scores_grad(struct back *w)
{
	tile_transpose(w->vt, ROWS, w->s.v, w->s.vw, ROWS, w->s.vw);
	tile_mul(&(struct tile_mul){ .m = ROWS, .n = ROWS, .k = w->a->dv, .a = w->d_o,
				     .a_row = w->s.vw, .a_col = 1, .b = w->vt, .ldb = ROWS,
				     .c = w->da[0], .ldc = ROWS });
	for (int t = 0; t < ROWS; t++)
		for (int u = t + 1; u < ROWS; u++)
			w->da[t][u] = 0;
}

/* far [ROWS][kw] = x [ROWS][vw] state [dv][kw] */
static void through_state(const struct back *w, const acc_t *x, const acc_t *state)
{
	tile_mul(&(struct tile_mul){ .m = ROWS, .n = w->s.kw, .k = w->a->dv, .a = x,
				     .a_row = w->s.vw, .a_col = 1, .b = state, .ldb = w->s.kw,
				     .c = w->far, .ldc = w->s.kw });
}

/* The gradient of q into its sum, q dq into own; q is scaled, its gradient not yet. */
static void query_grad(struct back *w, const acc_t *state, int at, bool first)
{
	const struct linblock *s = &w->s;
	acc_t *dq = w->dq + (long)at * s->kw, scale = w->a->scale;
	bool add = !first && w->a->shared & LINATTN_Q;

	through_state(w, w->d_o, state);
	decayed_sums(w->near, w->da[0], ROWS, 1, s->k, s->alpha, s->kw, s->kw);
#pragma omp simd
	for (int e = 0; e < ROWS * s->kw; e++) {
		acc_t one = w->near[e] + w->far[e] * s->from[e];

		dq[e] = (add ? dq[e] : 0) + scale * one;
		w->own[e] = s->q[e] * one;
	}
}

static void key_grad(struct back *w, const acc_t *dstate, int at, bool first)
{
	const struct linblock *s = &w->s;
	int last = (ROWS - 1) * s->kw;
	acc_t *dk = w->dk + (long)at * s->kw;
	bool add = !first && w->a->shared & LINATTN_K;

	through_state(w, s->v, dstate);
	decayed_sums(w->near + last, &w->da[ROWS - 1][ROWS - 1], -1, -ROWS, s->q + last,
		     s->alpha + last + s->kw, -s->kw, s->kw);
#pragma omp simd
	for (int e = 0; e < ROWS * s->kw; e++) {
		acc_t one = w->near[e] + w->far[e] * s->to[e];

		dk[e] = (add ? dk[e] : 0) + one;
		w->own[e] -= s->k[e] * one;
	}
}

/* Transposed, [dv][ROWS]: what later blocks and what this one's positions give. */
static void value_grad(struct back *w, const acc_t *dstate, int at, bool first)
{
	const struct linblock *s = &w->s;
	acc_t *dv = w->dv + (long)at * s->vw;
	struct tile_mul m = { .m = w->a->dv, .n = ROWS, .k = w->a->dk, .a = dstate, .a_row = s->kw,
			      .a_col = 1, .b = w->kft, .ldb = ROWS, .c = w->vt, .ldc = ROWS };

	tile_transpose(w->kft, ROWS, s->kf, s->kw, ROWS, s->kw);
	tile_mul(&m);
	m.k = ROWS;
	m.a = w->d_o;
	m.a_row = 1;
	m.a_col = s->vw;
	m.b = s->a[0];
	m.add = true;
	tile_mul(&m);
	if (first || !(w->a->shared & LINATTN_V)) {
		tile_transpose(dv, s->vw, w->vt, ROWS, s->vw, ROWS);
		return;
	}
	for (int r = 0; r < ROWS; r++)
		for (int e = 0; e < w->a->dv; e++)
			dv[r * s->vw + e] += w->vt[e * ROWS + r];
}

/*
 * dg_t = sum over u >= t of q_u dq_u - k_u dk_u, of which all beyond the block is <S, dS> of the
 * state behind it: sums are as long as a block, not as the sequence.
 */
static void decay_grad(struct back *w, const acc_t *state, const acc_t *dstate, int at, bool first)
{
	acc_t *dg = w->dg + (long)at * w->s.kw, *sum = w->far;
	bool add = !first && w->a->shared & LINATTN_G;
	int kw = w->s.kw;

	memset(sum, 0, kw * sizeof(*sum));
	for (int e = 0; e < w->a->dv; e++)
#pragma omp simd
		for (int c = 0; c < kw; c++)
			sum[c] += state[(long)e * kw + c] * dstate[(long)e * kw + c];
	for (int r = ROWS - 1; r >= 0; r--)
#pragma omp simd
		for (int c = 0; c < kw; c++) {
			sum[c] += w->own[r * kw + c];
			dg[r * kw + c] = (add ? dg[r * kw + c] : 0) + sum[c];
		}
}

static void block_back(struct back *w, const acc_t *state, int t0, int at, bool first)
{
	const struct linattn *a = w->a;
	int n = linattn_rows(t0, a->t);
	acc_t *dstate = dstate_of(w);

	linblock_load_keys(&w->s, a, w->i, w->h, t0, n);
	linblock_load_queries(&w->s, a, w->i, w->h, t0, n);
	linattn_load(w->d_o, w->s.vw,
		     w->d->d_o + (((long)w->i * a->t + t0) * a->heads + w->h) * a->dv,
		     (long)a->heads * a->dv, n, a->dv);
	scores_grad(w);
	query_grad(w, state, at, first);
	key_grad(w, dstate, at, first);
	value_grad(w, dstate, at, first);
	if (a->decay <= LINATTN_SCALAR)
		decay_grad(w, state + state_elems(w), dstate, at, first);
	state_pass(w, dstate, dstate, w->d_o, w->s.qe);
}

/* ---- a chunk backwards ---------------------------------------------------------------- */

static void store_rows(act_t *dst, long ld, const acc_t *sum, int width, int n, int cols)
{
	for (int r = 0; r < n; r++)
		for (int c = 0; c < cols; c++)
			dst[r * ld + c] = store(sum[(long)r * width + c]);
}

static void store_decay(const struct back *w, acc_t *dst, int n)
{
	const struct linattn *a = w->a;

	for (int r = 0; r < n; r++, dst += a->g_row) {
		const acc_t *one = w->dg + (long)r * w->s.kw;

		if (a->decay == LINATTN_VECTOR) {
			memcpy(dst, one, a->dk * sizeof(*dst));
			continue;
		}
		*dst = 0;
		for (int c = 0; c < a->dk; c++)
			*dst += one[c];
	}
}

/* The sums of those operands that heads share (@shared), or that are this head's own. */
static void store_sums(const struct back *w, int t0, int n, bool shared)
{
	const struct linattn *a = w->a;
	const struct linattn_grad *d = w->d;
	unsigned int which = shared ? a->shared : ~a->shared;
	long row = (long)w->i * a->t + t0;

	if (which & LINATTN_Q)
		store_rows(d->dq + row * a->q_row + linattn_head(a, LINATTN_Q, w->h) * a->q_head,
			   a->q_row, w->dq, w->s.kw, n, a->dk);
	if (which & LINATTN_K)
		store_rows(d->dk + row * a->k_row + linattn_head(a, LINATTN_K, w->h) * a->k_head,
			   a->k_row, w->dk, w->s.kw, n, a->dk);
	if (which & LINATTN_V)
		store_rows(d->dv + row * a->v_row + linattn_head(a, LINATTN_V, w->h) * a->v_head,
			   a->v_row, w->dv, w->s.vw, n, a->dv);
	if (which & LINATTN_G && a->decay <= LINATTN_SCALAR)
		store_decay(w, d->dg + row * a->g_row + linattn_head(a, LINATTN_G, w->h) * a->g_head,
			    n);
}

static void chunk_back(struct back *w, int n, int first, int heads)
{
	const struct linattn *a = w->a;
	int t0 = n * a->chunk, end = MIN(t0 + a->chunk, a->t), blocks = (end - t0 + ROWS - 1) / ROWS;

	for (w->h = first; w->h < first + heads; w->h++) {
		memcpy(w->states, kept(w, n), state_elems(w) * sizeof(acc_t));
		sweep(w, w->states, state_elems(w), t0, end);
		for (int j = blocks - 1; j >= 0; j--)
			block_back(w, w->states + j * state_elems(w), t0 + j * ROWS, j * ROWS,
				   w->h == first);
		store_sums(w, t0, end - t0, false);
	}
	w->h = first;
	store_sums(w, t0, end - t0, true);
}

/* The gradient of the first state. */
static void head_end(const struct back *w)
{
	const struct linattn *a = w->a;
	const acc_t *dstate = dstate_of(w);
	acc_t *dst = w->d->ds0 + ((size_t)w->i * a->heads + w->h) * a->dk * a->dv;

	for (int c = 0; c < a->dk; c++)
		for (int e = 0; e < a->dv; e++)
			dst[(long)c * a->dv + e] = dstate[(long)e * w->s.kw + c];
}

static void backward_heads(const struct linattn *a, const struct linattn_grad *d, int i, int first,
			   int heads)
{
	struct back w = { .a = a, .d = d, .i = i };

	back_place(&w);
	for (w.h = first; w.h < first + heads; w.h++)
		head_begin(&w);
	for (int n = chunks(a) - 1; n >= 0; n--)
		chunk_back(&w, n, first, heads);
	for (w.h = first; d->ds0 && w.h < first + heads; w.h++)
		head_end(&w);
}

void k_linattn_bwd(const struct linattn *a, const struct linattn_grad *d)
{
	int heads = a->shared ? a->group : 1;

#pragma omp parallel for collapse(2) schedule(dynamic)
	for (int i = 0; i < a->b; i++)
		for (int h = 0; h < a->heads; h += heads)
			backward_heads(a, d, i, h, heads);
}
