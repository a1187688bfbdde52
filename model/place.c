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

/* Sub-layers from a writer to its reader, both included: that many acts are alive. */
static int acts_alive(const struct model *m)
{
	int most = 1;

	for (int s = 0; s < NR_SUB; s++)
		for (int tap = 0; tap < NR_TAPS; tap++)
			if (m->sub[s].from[tap] >= 0)
				most = MAX(most, s - m->sub[s].from[tap] + 1);
	return most;
}

/* Saved activations: all in training, elsewhere as long as a tap of them is read. */
static void place_act(struct model *m, struct carve *c)
{
	bool train = m->phase == PHASE_TRAIN;
	int norms = train ? NR_SUB + 1 : 2, acts = train ? NR_SUB : acts_alive(m);
	size_t size = 0;

	for (int s = 0; s <= NR_SUB; s++)
		m->norm[s] = s < norms ? carve(c, sizeof(*m->norm[s])) : m->norm[s - norms];
	for (int s = 0; s < NR_SUB; s++)
		size = MAX(size, m->sub[s].mixer->act_size);
	for (int s = 0; s < NR_SUB; s++) {
		if (train)
			size = m->sub[s].mixer->act_size;
		m->act[s] = s < acts ? carve(c, size) : m->act[s - acts];
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
	m->y = carve(c, sizeof(act_t) * BT * C);
	m->logits = carve(c, MAX(sizeof(act_t) * HEAD_ROWS, sizeof(acc_t) * LOGIT_ROWS) * V);
	if (m->phase != PHASE_TRAIN)
		return;
	m->embed_scratch = carve(c, k_embed_scratch(B_MAX, T_MAX, C));
	m->dx = carve(c, sizeof(act_t) * BT * C);
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
	m->loss = carve(&c, 2 * sizeof(*m->loss));
	m->aux = m->loss ? m->loss + 1 : NULL;
	workspace = carve(&c, k_workspace());
	m->tmp = carve(&c, tmp_size(m, phase));
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
