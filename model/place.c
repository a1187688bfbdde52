// SPDX-License-Identifier: MIT
/*
 * Where every buffer stands in the arena: the same code measures and places.
 */
#include "model.h"
#include "util.h"

/* A bump allocator; a NULL base measures. */
struct carve {
	char *base;
	size_t used;
};

static void *carve(struct carve *c, size_t bytes)
{
	void *p = c->base ? c->base + c->used : NULL;

	c->used += ROUND_UP(bytes, TENSOR_ALIGN);
	return p;
}

static size_t tmp_size(const struct model *m, enum phase phase)
{
	size_t max = 0;

	for (int s = 0; s < NR_SUB; s++) {
		const struct mixer *x = m->sub[s].mixer;

		max = MAX(max, x->tmp_size);
		if (phase == PHASE_DECODE)
			max = MAX(max, x->step_tmp_size);
	}
	return max;
}

/* Scratch of mixers, logits, and scratch of the embedding's gradient are never alive together. */
static void place_tmp(struct model *m, struct carve *c)
{
	size_t logits = MAX(sizeof(act_t) * HEAD_ROWS, sizeof(acc_t) * LOGIT_ROWS) * V;
	size_t embed = m->phase == PHASE_TRAIN ? k_embed_scratch(B_MAX, T_MAX, C) : 0;

	m->tmp = carve(c, MAX(MAX(tmp_size(m, m->phase), logits), embed));
	m->logits = m->embed_scratch = m->tmp;
}

/* ---- activations: outside training only what is still to be read --------------- */

/* The first sub-layer whose taps that of @from still looks at when @tap of it is read. */
static int read_from(const struct model *m, int from, int tap)
{
	int first = from;

	for (int t = 0; t < NR_TAPS && !taps[tap].width; t++)
		if (m->sub[from].from[t] >= 0)
			first = MIN(first, m->sub[from].from[t]);
	return first;
}

/*
 * Sub-layers from a writer to its reader, both included: that many acts are alive where a
 * description points at them, and that many rows of each tap.
 */
static void alive(const struct model *m, int *acts, int *rows)
{
	*acts = *rows = 1;
	for (int s = 0; s < NR_SUB; s++)
		for (int tap = 0; tap < NR_TAPS; tap++) {
			int from = m->sub[s].from[tap];

			if (from < 0)
				continue;
			if (!taps[tap].width)
				*acts = MAX(*acts, s - from + 1);
			*rows = MAX(*rows, s - read_from(m, from, tap) + 1);
		}
}

static size_t act_size(const struct model *m, bool again)
{
	size_t size = 0;

	for (int s = 0; s < NR_SUB; s++)
		size = MAX(size, again ? m->sub[s].mixer->again_size : m->sub[s].mixer->act_size);
	return size;
}

static void *carve_rows(struct carve *c, int width)
{
	return carve(c, sizeof(act_t) * BT * width);
}

static void *carve_tap(struct carve *c, int tap)
{
	return carve(c, taps[tap].elem * BT * taps[tap].width);
}

/* Those taps of sub-layer @s that are of @which. */
static void place_own(struct model *m, struct carve *c, int s, unsigned int which)
{
	for (int tap = 0; tap < NR_TAPS; tap++)
		if (m->sub[s].has & which & 1u << tap)
			m->tap[s][tap] = carve_tap(c, tap);
}

/* The taps of @which, a kind at a time, in as many buffers as are alive. */
static void place_turn(struct model *m, struct carve *c, unsigned int which, int rows)
{
	for (int tap = 0; tap < NR_TAPS; tap++)
		for (int s = 0; s < NR_SUB && which & 1u << tap; s++)
			m->tap[s][tap] = s < rows ? carve_tap(c, tap) : m->tap[s - rows][tap];
}

static void place_turns(struct model *m, struct carve *c)
{
	unsigned int read = 0;
	int acts, rows;
	act_t *x = carve_rows(c, C), *xn = carve_rows(c, C);
	struct norm_stat *stat = carve(c, sizeof(*stat));
	void *again = carve(c, act_size(m, true));

	alive(m, &acts, &rows);
	for (int s = 0; s <= NR_SUB; s++) {
		m->x[s] = x;
		m->xn[s] = xn;
		m->stat[s] = stat;
	}
	for (int s = 0; s < NR_SUB; s++) {
		m->act[s] = s < acts ? carve(c, act_size(m, false)) : m->act[s - acts];
		m->again[s] = again;
		read |= m->sub[s].has;
	}
	place_turn(m, c, read, rows);
}

/* ---- in training --------------------------------------------------------------- */

/*
 * @all: also what can be made again; @rows: taps that have a place here. What the norm writes
 * comes first: the norm that begins a segment reads the last x of the one before, which stands
 * behind as much of that one in the same memory.
 */
static void place_sub(struct model *m, struct carve *c, int s, bool all, unsigned int rows)
{
	if (all)
		m->xn[s] = carve_rows(c, C);
	m->stat[s] = carve(c, sizeof(*m->stat[s]));
	if (all)
		m->again[s] = carve(c, m->sub[s].mixer->again_size);
	m->act[s] = carve(c, m->sub[s].mixer->act_size);
	place_own(m, c, s, rows);
}

/* RECOMPUTE_NONE: everything stays, but for taps that pass. */
static void place_all(struct model *m, struct carve *c)
{
	unsigned int passing = 0;

	for (int s = 0; s < NR_SUB; s++)
		passing |= m->sub[s].passing;
	place_turn(m, c, passing, 1);
	for (int s = 0; s < NR_SUB; s++) {
		m->x[s] = carve_rows(c, C);
		place_sub(m, c, s, true, ~m->sub[s].passing);
	}
}

/* RECOMPUTE_ACTIVATIONS: what can be made again has one place; all taps stay for it. */
static void place_saved(struct model *m, struct carve *c)
{
	act_t *xn = carve_rows(c, C);
	void *again = carve(c, act_size(m, true));

	for (int s = 0; s < NR_SUB; s++) {
		m->x[s] = carve_rows(c, C);
		m->xn[s] = xn;
		m->again[s] = again;
		place_sub(m, c, s, false, ~0u);
	}
}

/* RECOMPUTE_BLOCK: segments have one place, but for what leads into them. */
static void place_segments(struct model *m, struct carve *c)
{
	size_t most = 0;
	struct carve one = *c;

	for (int s = 0; s < NR_SUB; s++) {
		if (s == m->sub[s].first)
			m->x[s] = carve_rows(c, C);
		place_own(m, c, s, m->sub[s].far);
	}
	for (int s = 0; s < NR_SUB; s++) {
		if (s == m->sub[s].first)
			one = *c;
		else
			m->x[s] = carve_rows(&one, C);
		place_sub(m, &one, s, true, ~m->sub[s].far);
		most = MAX(most, one.used);
	}
	c->used = most;
}

static void place_act(struct model *m, struct carve *c)
{
	if (m->phase != PHASE_TRAIN) {
		place_turns(m, c);
	} else {
		if (m->recompute == RECOMPUTE_NONE)
			place_all(m, c);
		else if (m->recompute == RECOMPUTE_ACTIVATIONS)
			place_saved(m, c);
		else
			place_segments(m, c);
		m->x[NR_SUB] = carve_rows(c, C);
		m->xn[NR_SUB] = carve_rows(c, C);
		m->stat[NR_SUB] = carve(c, sizeof(*m->stat[NR_SUB]));
	}
	m->row_loss = carve(c, BT * sizeof(*m->row_loss));
}

size_t model_act_size(struct model *m, enum phase phase)
{
	struct carve c = { .base = NULL };

	m->phase = phase;
	place_act(m, &c);
	return c.used;
}

/* One gradient buffer per kind of tap that somebody reads and that has one. */
static void place_taps(struct model *m, struct carve *c)
{
	unsigned int read = 0;

	for (int s = 0; s < NR_SUB; s++)
		read |= m->sub[s].has;
	for (int tap = 0; tap < NR_TAPS; tap++)
		if (read & 1u << tap && !taps[tap].detached)
			m->dtap[tap] = carve(c, taps[tap].elem * BT * taps[tap].width);
}

static void place_work(struct model *m, struct carve *c)
{
	m->input = carve(c, sizeof(*m->input));
	m->best = carve(c, sizeof(*m->best) * BEST_ROWS);
	m->y = carve(c, sizeof(act_t) * BT * C);
	if (m->phase != PHASE_TRAIN)
		return;
	m->dx = carve(c, sizeof(act_t) * BT * C);
	m->dy = carve(c, DROPOUT * sizeof(act_t) * BT * C);
	place_taps(m, c);
}

static void place_step(struct model *m, struct carve *c, int n)
{
	m->sequences = n;
	m->step_tok = carve(c, sizeof(*m->step_tok) * n);
	m->step_pos = carve(c, sizeof(*m->step_pos) * n);
	m->step_x = carve(c, sizeof(act_t) * n * C);
	m->step_xn = carve(c, sizeof(act_t) * n * C);
	m->step_stat = carve(c, sizeof(acc_t) * 2 * n);
	m->step_logits = carve(c, sizeof(acc_t) * n * V);
	for (int tap = 0; tap < NR_TAPS; tap++)
		m->step_tap[tap] = carve(c, taps[tap].elem * n * taps[tap].step_width);
}

/* Descriptions that mixers keep on the host, once. */
static void place_host(struct model *m)
{
	for (int s = 0; s < NR_SUB; s++)
		if (!m->host[s] && m->sub[s].mixer->host_size)
			m->host[s] = xcalloc(1, m->sub[s].mixer->host_size);
}

size_t model_place(struct model *m, void *arena, enum phase phase, int sequences, size_t extra,
		   void **extra_at)
{
	struct carve c = { .base = arena };
	void *rest, *workspace;

	m->phase = phase;
	m->w = carve(&c, m->param_elems * sizeof(param_t));
	m->stage = carve(&c, sizeof(param_t) == sizeof(grad_t) ? 0 : PIECE * sizeof(grad_t));
	m->loss = carve(&c, 3 * sizeof(*m->loss));
	m->aux = m->loss ? m->loss + 1 : NULL;
	workspace = carve(&c, k_workspace());
	place_tmp(m, &c);
	place_act(m, &c);
	place_work(m, &c);
	if (phase == PHASE_DECODE) {
		place_step(m, &c, sequences);
		for (int s = 0; s < NR_SUB; s++)
			m->cache[s] = carve(&c, m->sub[s].cache.size * sequences);
	}
	rest = carve(&c, extra);
	if (extra_at)
		*extra_at = rest;
	if (arena) {
		k_workspace_use(workspace);
		place_host(m);
	}
	return c.used;
}
