// SPDX-License-Identifier: MIT
/*
 * Layout: sub-layers from CONFIG_BLOCK, the wiring of taps, tensor names and
 * offsets, and where every buffer stands in the arena.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "util.h"

static const struct param embed_params[] = {
	PARAM(struct embed_param, wte, "wte.weight", INIT_NORMAL, 0, DECAY, V, C),
	PARAM(struct embed_param, wpe, "wpe.weight", INIT_NORMAL, 0, DECAY, T_MAX, C),
};

static const struct param norm_params[] = {
	PARAM(struct norm_param, weight, "weight", INIT_ONE, 0, NO_DECAY, C),
	PARAM(struct norm_param, bias, "bias", INIT_ZERO, 0, NO_DECAY, C),
};

static const char *const tap_names[NR_TAPS] = { "HEAD_GATE", "LATENT", "LATENT_MIX", "ROUTE" };

const struct mixer *mixer_find(const char *name)
{
	for (const struct mixer *const *m = __start_tenon_mixers; m < __stop_tenon_mixers; m++)
		if (!strcmp((*m)->name, name))
			return *m;
	return NULL;
}

/* ---- sub-layers and taps -------------------------------------------------- */

static void layout_block(struct model *m)
{
	char *words = xstrdup(CONFIG_BLOCK), *save = NULL, *word;
	int n = 0;

	for (word = strtok_r(words, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
		const struct mixer *mixer = mixer_find(word);

		if (!mixer)
			die("CONFIG_BLOCK names \"%s\", which is not in this binary: enable its option in `make menuconfig`", word);
		for (int layer = 0; layer < NL; layer++) {
			struct sublayer *s = &m->sub[layer * CONFIG_BLOCK_LEN + n];

			s->mixer = mixer;
			s->layer = layer;
		}
		n++;
	}
	free(words);
	if (n != CONFIG_BLOCK_LEN)
		die_bug("CONFIG_BLOCK has %d names, CONFIG_BLOCK_LEN is %d", n, CONFIG_BLOCK_LEN);
}

/* The nearest earlier writer of a tap; it may have one reader only. */
static void wire_tap(struct model *m, int reader, int tap)
{
	unsigned int bit = 1u << tap;
	int w = reader - 1;

	m->sub[reader].from[tap] = -1;
	if (!(m->sub[reader].mixer->taps_read & bit))
		return;
	while (w >= 0 && !(m->sub[w].mixer->taps_written & bit))
		w--;
	if (w < 0)
		return;
	if (m->sub[w].read & bit)
		die("CONFIG_BLOCK=\"%s\": %s written by sub-layer %d has two readers; put a writer before each",
		    CONFIG_BLOCK, tap_names[tap], w);
	m->sub[w].read |= bit;
	m->sub[reader].from[tap] = w;
}

/* ---- names and offsets ----------------------------------------------------- */

static size_t add_module(struct model *m, const char *prefix, const struct param *params, int nr,
			 unsigned int read)
{
	size_t start = m->param_elems;

	m->entries = xrealloc(m->entries, (m->nr_entries + nr) * sizeof(*m->entries));
	for (int i = 0; i < nr; i++) {
		struct param_entry *e = &m->entries[m->nr_entries];

		if (!param_exists(&params[i], read))
			continue;
		snprintf(e->name, sizeof(e->name), "%s%s", prefix, params[i].name);
		e->p = &params[i];
		e->offset = start + params[i].offset / sizeof(param_t);
		e->numel = param_numel(&params[i]);
		m->nr_entries++;
	}
	m->param_elems += param_module_elems(params, nr, read);
	return start;
}

/*
 * "h.3.attn." or "h.3.mlp."; a block with several sub-layers of a role numbers
 * them from the second on: "h.3.attn_2.".
 */
static void sub_prefix(const struct model *m, int s, char *prefix, size_t n)
{
	static const char *const folder[] = { [ROLE_ATTN] = "attn", [ROLE_MLP] = "mlp" };
	enum mixer_role role = m->sub[s].mixer->role;
	int first = m->sub[s].layer * CONFIG_BLOCK_LEN, nth = 1;

	for (int i = first; i < s; i++)
		nth += m->sub[i].mixer->role == role;
	if (nth == 1)
		snprintf(prefix, n, "h.%d.%s.", m->sub[s].layer, folder[role]);
	else
		snprintf(prefix, n, "h.%d.%s_%d.", m->sub[s].layer, folder[role], nth);
}

static void layout_params(struct model *m)
{
	char prefix[32];

	add_module(m, "", embed_params, ARRAY_SIZE(embed_params), 0);
	for (int s = 0; s < NR_SUB; s++) {
		struct sublayer *sub = &m->sub[s];

		snprintf(prefix, sizeof(prefix), "h.%d.ln_%d.", sub->layer,
			 s % CONFIG_BLOCK_LEN + 1);
		sub->norm = add_module(m, prefix, norm_params, ARRAY_SIZE(norm_params), 0);
		sub_prefix(m, s, prefix, sizeof(prefix));
		sub->param = add_module(m, prefix, sub->mixer->params, sub->mixer->nr_params,
					sub->read);
		sub->elems = m->param_elems - sub->param;
	}
	m->ln_f = add_module(m, "ln_f.", norm_params, ARRAY_SIZE(norm_params), 0);
}

void model_layout(struct model *m)
{
	layout_block(m);
	for (int s = 0; s < NR_SUB; s++)
		for (int tap = 0; tap < NR_TAPS; tap++)
			wire_tap(m, s, tap);
	for (int s = 0; s < NR_SUB; s++)
		if (m->sub[s].mixer->cache)
			m->sub[s].cache = m->sub[s].mixer->cache(m->sub[s].read);
	layout_params(m);
}

/* ---- the arena ------------------------------------------------------------- */

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

		max = MAX(max, phase == PHASE_DECODE ? x->step_tmp_size : x->tmp_size);
	}
	return max;
}

/*
 * Saved activations. Evaluation keeps a sub-layer's only until the nearest later
 * reader of its taps has run, which is at most one block further.
 */
static void place_act(struct model *m, struct carve *c)
{
	int norms = m->phase == PHASE_EVAL ? 2 : NR_SUB + 1;
	int acts = m->phase == PHASE_EVAL ? MIN(CONFIG_BLOCK_LEN + 1, NR_SUB) : NR_SUB;
	size_t size = 0;

	for (int s = 0; s <= NR_SUB; s++)
		m->norm[s] = s < norms ? carve(c, sizeof(*m->norm[s])) : m->norm[s - norms];
	for (int s = 0; s < NR_SUB; s++)
		size = MAX(size, m->sub[s].mixer->act_size);
	for (int s = 0; s < NR_SUB; s++) {
		if (m->phase == PHASE_TRAIN)
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

static void place_taps(struct model *m, struct carve *c)
{
	unsigned int grads = 0;

	for (int s = 0; s < NR_SUB; s++)
		grads |= m->sub[s].read & ~TAPS_DETACHED;
	if (grads & TAP_HEAD_GATE)
		m->dtap.head_gate = carve(c, sizeof(act_t) * BT * H);
	if (grads & TAP_LATENT)
		m->dtap.latent = carve(c, sizeof(act_t) * BT * L);
	if (grads & TAP_LATENT_MIX)
		m->dtap.latent_mix = carve(c, sizeof(act_t) * BT * L);
}

static void place_work(struct model *m, struct carve *c)
{
	m->tok = carve(c, sizeof(*m->tok) * B_MAX * (T_MAX + 1));
	m->y = carve(c, sizeof(act_t) * BT * C);
	m->logits = carve(c, sizeof(act_t) * HEAD_ROWS * V);
	if (m->phase != PHASE_TRAIN)
		return;
	m->order = carve(c, sizeof(*m->order) * 2 * BT);
	m->dx = carve(c, sizeof(act_t) * BT * C);
	place_taps(m, c);
}

static void place_step(struct model *m, struct carve *c, int n)
{
	struct taps *out = &m->step_out;

	m->sequences = n;
	m->tok = carve(c, sizeof(*m->tok) * n);
	m->y = carve(c, sizeof(act_t) * n * C);
	m->step_x = carve(c, sizeof(act_t) * n * C);
	m->step_xn = carve(c, sizeof(act_t) * n * C);
	m->step_stat = carve(c, sizeof(acc_t) * 2 * n);
	m->logits = carve(c, sizeof(act_t) * n * V);
	out->head_gate = carve(c, sizeof(act_t) * n * H);
	out->latent = carve(c, sizeof(act_t) * n * L);
	out->latent_mix = carve(c, sizeof(act_t) * n * L);
	out->route.row = carve(c, sizeof(act_t) * n * ROUTE_ROWS * T_MAX);
	out->route.row_stride = T_MAX;
}

size_t model_place(struct model *m, void *arena, enum phase phase, int sequences, size_t extra,
		   void **extra_at)
{
	struct carve c = { .base = arena };
	void *rest;

	m->phase = phase;
	m->w = carve(&c, m->param_elems * sizeof(param_t));
	m->loss = carve(&c, sizeof(*m->loss));
	m->tmp = carve(&c, tmp_size(m, phase));
	if (phase == PHASE_DECODE) {
		place_step(m, &c, sequences);
		for (int s = 0; s < NR_SUB; s++)
			m->cache[s] = carve(&c, m->sub[s].cache.size * sequences);
	} else {
		place_act(m, &c);
		place_work(m, &c);
	}
	rest = carve(&c, extra);
	if (extra_at)
		*extra_at = rest;
	return c.used;
}
