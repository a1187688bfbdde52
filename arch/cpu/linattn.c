// SPDX-License-Identifier: MIT
/*
 * Linear recurrences forward: a thread takes a head of a sequence through its blocks, the
 * state in cache. What passes from block to block are products of small tiles; inside a
 * block a decay stands between each query and each key, element by element, so that keys
 * decay step by step in registers while queries meet them.
 */
#include <string.h>

#include "linattn.h"
#include "math.h"

enum { SPLIT_MIN = 16384 };	/* elements below which threads cost more than they gain */

acc_t *linblock_place(struct linblock *s, const struct linattn *a, acc_t *scratch)
{
	size_t kw = tile_width(a->dk), keys = ROWS * kw;

	s->kw = kw;
	s->vw = tile_width(a->dv);
	s->q = scratch;
	s->k = s->q + keys;
	s->alpha = s->k + keys;
	s->from = s->alpha + keys;
	s->end = s->from + keys - kw;
	s->to = s->from + keys;
	s->qe = s->to + keys;
	s->kf = s->qe + keys;
	s->kt = s->kf + keys;
	s->v = s->kt + keys;
	s->a = (void *)(s->v + ROWS * s->vw);
	return s->v + ROWS * (s->vw + ROWS);
}

void linattn_load(acc_t *dst, int width, const act_t *src, long ld, int n, int cols)
{
	for (int r = 0; r < n; r++, dst += width, src += ld) {
#pragma omp simd
		for (int c = 0; c < cols; c++)
			dst[c] = load(src[c]);
		memset(dst + cols, 0, (width - cols) * sizeof(*dst));
	}
	memset(dst, 0, (size_t)(ROWS - n) * width * sizeof(*dst));
}

static void fill(acc_t *x, acc_t value, int n)
{
	for (int i = 0; i < n; i++)
		x[i] = value;
}

static void load_alpha(struct linblock *s, const struct linattn *a, int i, int h, int t0, int n)
{
	const acc_t *g = decay_at(a, (long)i * a->t + t0, h);
	acc_t *alpha = s->alpha, one = decay_of_head(a, h);
	int cols = a->decay == LINATTN_VECTOR ? a->dk : 0;

	for (int r = 0; r < n; r++, alpha += s->kw) {
#pragma omp simd simdlen(LANES_WIDE)
		for (int c = 0; c < cols; c++)
			alpha[c] = r_exp(g[c]);
		if (cols)
			fill(alpha + cols, 1, s->kw - cols);
		else
			fill(alpha, g ? r_exp(*g) : one, s->kw);
		if (g)
			g += a->g_row;
	}
	fill(alpha, 1, (ROWS - n) * s->kw);
}

static void products_of_alpha(struct linblock *s)
{
	int kw = s->kw;

	memcpy(s->from, s->alpha, kw * sizeof(acc_t));
	for (int r = 1; r < ROWS; r++)
#pragma omp simd
		for (int c = 0; c < kw; c++)
			s->from[r * kw + c] = s->from[(r - 1) * kw + c] * s->alpha[r * kw + c];
	fill(s->to + (ROWS - 1) * kw, 1, kw);
	for (int r = ROWS - 2; r >= 0; r--)
#pragma omp simd
		for (int c = 0; c < kw; c++)
			s->to[r * kw + c] = s->to[(r + 1) * kw + c] * s->alpha[(r + 1) * kw + c];
}

void linblock_load_keys(struct linblock *s, const struct linattn *a, int i, int h, int t0, int n)
{
	long row = (long)i * a->t + t0;

	linattn_load(s->k, s->kw, a->k + row * a->k_row + linattn_head(a, LINATTN_K, h) * a->k_head,
		     a->k_row, n, a->dk);
	linattn_load(s->v, s->vw, a->v + row * a->v_row + linattn_head(a, LINATTN_V, h) * a->v_head,
		     a->v_row, n, a->dv);
	load_alpha(s, a, i, h, t0, n);
	products_of_alpha(s);
#pragma omp simd
	for (int e = 0; e < ROWS * s->kw; e++)
		s->kf[e] = s->k[e] * s->to[e];
}

/* ---- inside a block ------------------------------------------------------------ */

enum { NV = ROWS / LANES };	/* vectors of a row of scores */

/* 1 at u == t: where the key of a position enters. */
#define ONE(t) [t] = { [t] = 1 }
static const acc_t enters[ROWS][ROWS] TENSOR = {
	ONE(0), ONE(1), ONE(2), ONE(3), ONE(4), ONE(5), ONE(6), ONE(7), ONE(8), ONE(9), ONE(10),
	ONE(11), ONE(12), ONE(13), ONE(14), ONE(15)
};

/*
 * a[t][u] = sum over the columns of q_t k_u and the alphas of u + 1 .. t. A column's keys
 * stand in a vector; each position decays those before it and adds its own.
 */
static void scores(struct linblock *s)
{
	tile_vec sum[ROWS][NV] = {};

	for (int c = 0; c < s->kw; c++) {
		const tile_vec *kt = (const tile_vec *)(s->kt + c * ROWS);
		const acc_t *q = s->q + c, *alpha = s->alpha + c;

		for (int v = 0; v < NV; v++) {
			tile_vec key = kt[v], now = {};

#pragma GCC unroll 16
			for (int t = 0; t < ROWS; t++) {
				now = now * alpha[t * s->kw] + key * ((const tile_vec *)enters[t])[v];
				sum[t][v] += now * q[t * s->kw];
			}
		}
	}
	memcpy(s->a, sum, sizeof(sum));
}

void linblock_load_queries(struct linblock *s, const struct linattn *a, int i, int h, int t0,
			   int n)
{
	long row = (long)i * a->t + t0;
	acc_t scale = a->scale;

	linattn_load(s->q, s->kw, a->q + row * a->q_row + linattn_head(a, LINATTN_Q, h) * a->q_head,
		     a->q_row, n, a->dk);
#pragma omp simd
	for (int e = 0; e < ROWS * s->kw; e++) {
		s->q[e] *= scale;
		s->qe[e] = s->q[e] * s->from[e];
	}
	tile_transpose(s->kt, ROWS, s->k, s->kw, ROWS, s->kw);
	scores(s);
}

/* ---- forward --------------------------------------------------------------------- */

/* The state [dk][vw] of head @h of sequence @i before the first position. */
static void state_begin(acc_t *state, const struct linattn *a, int i, int h, int vw)
{
	if (a->s0)
		tile_pack_acc(state, a->s0 + ((long)i * a->heads + h) * a->dk * a->dv, a->dv, a->dk,
			      a->dv);
	else
		memset(state, 0, (size_t)a->dk * vw * sizeof(*state));
}

static void state_pass(acc_t *state, const struct linattn *a, const struct linblock *s)
{
	for (int c = 0; c < a->dk; c++)
#pragma omp simd
		for (int e = 0; e < s->vw; e++)
			state[c * s->vw + e] *= s->end[c];
	tile_mul(&(struct tile_mul){ .m = a->dk, .n = a->dv, .k = ROWS, .a = s->kf, .a_row = 1,
				     .a_col = s->kw, .b = s->v, .ldb = s->vw, .c = state,
				     .ldc = s->vw, .add = true, .pad = true });
}

/* Rows of o, summed in @sum [ROWS][vw]. */
static void block_out(const struct linattn *a, const struct linblock *s, const acc_t *state,
		      acc_t *sum, int i, int h, int t0, int n)
{
	struct tile_mul past = { .m = n, .n = a->dv, .k = a->dk, .a = s->qe, .a_row = s->kw,
				 .a_col = 1, .b = state, .ldb = s->vw, .c = sum, .ldc = s->vw,
				 .pad = true };
	struct tile_mul own = { .m = n, .n = a->dv, .k = ROWS, .a = s->a[0], .a_row = ROWS,
				.a_col = 1, .b = s->v, .ldb = s->vw, .c = sum, .ldc = s->vw,
				.add = true, .pad = true, .shape = TILE_A_LOWER };

	tile_mul(&past);
	tile_mul(&own);
	for (int r = 0; r < n; r++)
		store_row(a->o + (((long)i * a->t + t0 + r) * a->heads + h) * a->dv,
			  sum + r * s->vw, a->dv);
}

static void forward_head(const struct linattn *a, int i, int h)
{
	long vw = tile_width(a->dv);
	acc_t *state = tile_scratch(linblock_elems(a) + (a->dk + ROWS) * vw);
	acc_t *sum = state + a->dk * vw;
	struct linblock s;

	linblock_place(&s, a, sum + ROWS * vw);
	state_begin(state, a, i, h, vw);
	for (int t0 = 0; t0 < a->t; t0 += ROWS) {
		int n = linattn_rows(t0, a->t);

		linblock_load_keys(&s, a, i, h, t0, n);
		linblock_load_queries(&s, a, i, h, t0, n);
		block_out(a, &s, state, sum, i, h, t0, n);
		state_pass(state, a, &s);
	}
}

void k_linattn_fwd(const struct linattn *a)
{
#pragma omp parallel for collapse(2) schedule(dynamic)
	for (int i = 0; i < a->b; i++)
		for (int h = 0; h < a->heads; h++)
			forward_head(a, i, h);
}

/* ---- decode ---------------------------------------------------------------------- */

static void state_head(const struct linattn *a, acc_t *dst, int i, int h, int len)
{
	long vw = tile_width(a->dv);
	acc_t *state = tile_scratch(linblock_elems(a) + a->dk * vw);
	struct linblock s;

	linblock_place(&s, a, state + a->dk * vw);
	state_begin(state, a, i, h, vw);
	for (int t0 = 0; t0 < len; t0 += ROWS) {
		linblock_load_keys(&s, a, i, h, t0, linattn_rows(t0, len));
		state_pass(state, a, &s);
	}
	for (int c = 0; c < a->dk; c++)
		memcpy(dst + (long)c * a->dv, state + c * vw, a->dv * sizeof(*dst));
}

void k_linattn_state(const struct linattn *a, acc_t *state, long seq, const int32_t *len)
{
#pragma omp parallel for collapse(2) schedule(dynamic)
	for (int i = 0; i < a->b; i++)
		for (int h = 0; h < a->heads; h++)
			state_head(a, state + i * seq + (long)h * a->dk * a->dv, i, h, len[i]);
}

static void step_head(const struct linattn *a, acc_t *state, int i, int h)
{
	acc_t *sum = tile_scratch(2 * (size_t)a->dv), *value = sum + a->dv;
	const act_t *q = a->q + i * a->q_row + linattn_head(a, LINATTN_Q, h) * a->q_head;
	const act_t *k = a->k + i * a->k_row + linattn_head(a, LINATTN_K, h) * a->k_head;
	const act_t *v = a->v + i * a->v_row + linattn_head(a, LINATTN_V, h) * a->v_head;
	const acc_t *g = decay_at(a, i, h);
	bool vector = a->decay == LINATTN_VECTOR;
	acc_t scale = a->scale, alpha = g ? r_exp(*g) : decay_of_head(a, h);

	for (int e = 0; e < a->dv; e++) {
		sum[e] = 0;
		value[e] = load(v[e]);
	}
	for (int c = 0; c < a->dk; c++, state += a->dv) {
		acc_t key = load(k[c]), query = scale * load(q[c]), decay = vector ? r_exp(g[c]) : alpha;

#pragma omp simd
		for (int e = 0; e < a->dv; e++) {
			state[e] = decay * state[e] + key * value[e];
			sum[e] += query * state[e];
		}
	}
	store_row(a->o + ((long)i * a->heads + h) * a->dv, sum, a->dv);
}

void k_linattn_step(const struct linattn *a, acc_t *state, long seq, const int32_t *pos)
{
	long size = (long)a->dk * a->dv;

#pragma omp parallel for collapse(2) schedule(static) if (a->b * a->heads * size >= SPLIT_MIN)
	for (int i = 0; i < a->b; i++)
		for (int h = 0; h < a->heads; h++) {
			acc_t *one = state + i * seq + h * size;

			if (!pos[i])
				memset(one, 0, size * sizeof(*one));
			step_head(a, one, i, h);
		}
}
