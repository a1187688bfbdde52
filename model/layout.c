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
	PARAM(struct embed_param, wte, "wte.weight", init_normal, 0, DECAY, V, C),
	PARAM(struct embed_param, wpe, "wpe.weight", init_normal, 0, DECAY, POSITIONS * WPE, C),
};

static const struct param norm_params[] = {
	PARAM(struct norm_param, weight, "weight", init_one, 0, WIDE, C),
	PARAM(struct norm_param, bias, "bias", init_zero, 0, WIDE, !RMS * C),
};

static const struct param head_params[] = {
	PARAM(struct head_param, lm_head, "lm_head.weight",
	      IS_ENABLED(CONFIG_INIT_XAVIER) ? init_xavier : init_normal, 0, DECAY, !TIED * V, C),
};

const struct tap taps[NR_TAPS] = {
#define TAP(name, type, width, step_width, detached) \
	{ #name, sizeof(type), width, step_width, detached },
	TAPS(TAP)
#undef TAP
};

const struct mixer *mixer_find(const char *name)
{
	for (const struct mixer *const *m = __start_tenon_mixers; m < __stop_tenon_mixers; m++)
		if (!strcmp((*m)->name, name))
			return *m;
	return NULL;
}

/* ---- sub-layers and taps -------------------------------------------------- */

/* Whether a layer is listed in CONFIG_BLOCK_ALT_LAYERS. */
static bool is_alt(int layer)
{
	const char *at = CONFIG_BLOCK_ALT_LAYERS;

	while (*at) {
		char *end;

		if (strtol(at, &end, 10) == layer)
			return true;
		at = *end ? end + 1 : end;
	}
	return false;
}

int mixer_times(const char *name, int layer)
{
	char *words = xstrdup(is_alt(layer) ? CONFIG_BLOCK_ALT : CONFIG_BLOCK), *save = NULL;
	int n = 0;

	for (char *word = strtok_r(words, " ", &save); word; word = strtok_r(NULL, " ", &save))
		n += !strcmp(word, name);
	free(words);
	return n;
}

static const struct mixer *mixer_named(const char *word, const char *symbol)
{
	const struct mixer *mixer = mixer_find(word);

	if (!mixer)
		die("CONFIG_%s names \"%s\", which is not in this binary: enable its option in `make menuconfig`",
		    symbol, word);
	return mixer;
}

/* The sub-layers of one block into every layer that has it. */
static void layout_block(struct model *m, const char *block, const char *symbol, bool alt)
{
	char *words = xstrdup(block), *save = NULL, *word;
	int nth = 0;

	for (word = strtok_r(words, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
		const struct mixer *mixer = mixer_named(word, symbol);

		for (int layer = 0, first = 0; layer < NL; layer++) {
			struct sublayer *s = &m->sub[first + nth];

			first += is_alt(layer) ? CONFIG_BLOCK_ALT_LEN : CONFIG_BLOCK_LEN;
			if (is_alt(layer) != alt)
				continue;
			s->mixer = mixer;
			s->layer = layer;
			s->nth = nth;
			s->has = mixer->options ? mixer->options(layer) : 0;
		}
		nth++;
	}
	free(words);
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
	if (m->sub[w].has & bit)
		die("CONFIG_BLOCK=\"%s\": %s written by sub-layer %d has two readers; put a writer before each",
		    CONFIG_BLOCK, taps[tap].name, w);
	m->sub[w].has |= bit;
	m->sub[reader].from[tap] = w;
}

/*
 * A segment begins with a layer, unless a description leads over that point: its reader
 * wants what it points at.
 */
static void layout_segments(struct model *m)
{
	int from = NR_SUB;	/* first writer of a description that is read from s on */

	for (int s = NR_SUB - 1; s >= 0; s--) {
		for (int tap = 0; tap < NR_TAPS; tap++)
			if (!taps[tap].width && m->sub[s].from[tap] >= 0)
				from = MIN(from, m->sub[s].from[tap]);
		m->sub[s].first = m->sub[s].nth || from < s ? -1 : s;
	}
	for (int s = 1; s < NR_SUB; s++)
		if (m->sub[s].first < 0)
			m->sub[s].first = m->sub[s - 1].first;
}

/* How long each tap's rows are wanted; those of a mixer that reads what it writes stay. */
static void layout_lifetimes(struct model *m)
{
	for (int s = 0; s < NR_SUB; s++)
		for (int tap = 0; tap < NR_TAPS; tap++) {
			int from = m->sub[s].from[tap];
			const struct mixer *w = from < 0 ? NULL : m->sub[from].mixer;
			unsigned int bit = 1u << tap;

			if (from < 0)
				continue;
			if (m->sub[from].first != m->sub[s].first)
				m->sub[from].far |= bit;
			if (w->taps_passing & m->sub[s].mixer->taps_passing & ~w->taps_read & bit)
				m->sub[from].passing |= bit;
		}
}

/* ---- names and offsets ----------------------------------------------------- */

static size_t add_module(struct model *m, const char *prefix, const struct param *params, int nr,
			 unsigned int has)
{
	size_t start = m->param_elems;

	m->entries = xrealloc(m->entries, (m->nr_entries + nr) * sizeof(*m->entries));
	for (int i = 0; i < nr; i++) {
		struct param_entry *e = &m->entries[m->nr_entries];

		if (!param_exists(&params[i], has))
			continue;
		snprintf(e->name, sizeof(e->name), "%s%s", prefix, params[i].name);
		e->p = &params[i];
		e->offset = start + params[i].offset / sizeof(param_t);
		e->numel = param_numel(&params[i]);
		m->nr_entries++;
	}
	m->param_elems += param_module_elems(params, nr, has);
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
	int nth = 1;

	for (int i = s - m->sub[s].nth; i < s; i++)
		nth += m->sub[i].mixer->role == role;
	if (nth == 1)
		snprintf(prefix, n, "h.%d.%s.", m->sub[s].layer, folder[role]);
	else
		snprintf(prefix, n, "h.%d.%s_%d.", m->sub[s].layer, folder[role], nth);
}

/* "dropout.h.3.attn" */
static uint64_t dropout_stream(const char *prefix)
{
	char *name = xasprintf("dropout.%.*s", (int)strlen(prefix) - 1, prefix);
	uint64_t stream = hash_name(name);

	free(name);
	return stream;
}

static void layout_params(struct model *m)
{
	char prefix[32];

	add_module(m, "", embed_params, ARRAY_SIZE(embed_params), 0);
	for (int s = 0; s < NR_SUB; s++) {
		struct sublayer *sub = &m->sub[s];

		snprintf(prefix, sizeof(prefix), "h.%d.ln_%d.", sub->layer, sub->nth + 1);
		sub->norm = add_module(m, prefix, norm_params, ARRAY_SIZE(norm_params), 0);
		sub_prefix(m, s, prefix, sizeof(prefix));
		sub->param = add_module(m, prefix, sub->mixer->params, sub->mixer->nr_params,
					sub->has);
		sub->elems = m->param_elems - sub->param;
		sub->stream = dropout_stream(prefix);
	}
	m->ln_f = add_module(m, "ln_f.", norm_params, ARRAY_SIZE(norm_params), 0);
	m->head = add_module(m, "", head_params, ARRAY_SIZE(head_params), 0);
}

void model_layout(struct model *m)
{
	m->recompute = IS_ENABLED(CONFIG_RECOMPUTE_BLOCK) ? RECOMPUTE_BLOCK :
		       IS_ENABLED(CONFIG_RECOMPUTE_ACTIVATIONS) ? RECOMPUTE_ACTIVATIONS :
								  RECOMPUTE_NONE;
	layout_block(m, CONFIG_BLOCK, "BLOCK", false);
	layout_block(m, CONFIG_BLOCK_ALT, "BLOCK_ALT", true);
	for (int s = 0; s < NR_SUB; s++)
		for (int tap = 0; tap < NR_TAPS; tap++)
			wire_tap(m, s, tap);
	layout_segments(m);
	layout_lifetimes(m);
	for (int s = 0; s < NR_SUB; s++)
		if (m->sub[s].mixer->cache)
			m->sub[s].cache = m->sub[s].mixer->cache(m->sub[s].has);
	layout_params(m);
}
