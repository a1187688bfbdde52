// SPDX-License-Identifier: MIT
/*
 * The plan for scripts: numbers of the run, and of each sub-layer its tensors, taps,
 * matrix products, form and leaks, so that no script needs a second list of them.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "data.h"
#include "plan.h"

static json_t *string_or_null(const char *text)
{
	return text ? json_string(text) : json_null();
}

static json_t *phase_json(const struct plan *p)
{
	struct part parts[PARTS];
	json_t *o = json_object();

	plan_parts(p, parts);
	for (int i = 0; i < PARTS; i++)
		json_object_set_new(o, parts[i].key, json_integer(parts[i].bytes));
	return o;
}

/* ---- tensors --------------------------------------------------------------- */

static json_t *tensor_json(const struct param_entry *e)
{
	json_t *shape = json_array();

	for (int i = 0; i < e->p->ndim; i++)
		json_array_append_new(shape, json_integer(e->p->dims[i]));
	return json_pack("{s:s,s:o,s:s,s:b,s:b}", "name", e->name, "shape", shape,
			 "precision", e->p->flags & WIDE ? "acc" : "param",
			 "decay", (e->p->flags & DECAY) != 0,
			 "frozen", (e->p->flags & FROZEN) != 0);
}

/* Those that start at elements [first, end) of the flat buffers. */
static json_t *tensors_json(const struct model *m, size_t first, size_t end)
{
	json_t *list = json_array();

	for (int i = 0; i < m->nr_entries; i++)
		if (m->entries[i].offset >= first && m->entries[i].offset < end)
			json_array_append_new(list, tensor_json(&m->entries[i]));
	return list;
}

/* "h.3.attn.": what stands before the leaf of a sub-layer's tensors; null without any */
static json_t *prefix_json(const struct model *m, size_t first, size_t end)
{
	for (int i = 0; i < m->nr_entries; i++) {
		const struct param_entry *e = &m->entries[i];

		if (e->offset >= first && e->offset < end)
			return json_stringn(e->name, strlen(e->name) - strlen(e->p->name));
	}
	return json_null();
}

/* ---- work ------------------------------------------------------------------ */

static json_t *work_json(const struct model *m, int s, bool backward)
{
	struct work w = { .flops = 0 };
	json_t *products = json_array();

	model_work(m, s, B_MAX, T_MAX, backward, &w);
	for (int i = 0; i < w.nr; i++) {
		const struct product *p = &w.products[i];

		json_array_append_new(products, json_pack("[i,i,i,i]", p->m, p->n, p->k, p->count));
	}
	free(w.products);
	return json_pack("{s:f,s:o}", "flops", w.flops, "products", products);
}

static void set_work(json_t *o, const struct model *m, int s)
{
	json_object_set_new(o, "forward", work_json(m, s, false));
	json_object_set_new(o, "backward", work_json(m, s, true));
}

/* ---- the stack ------------------------------------------------------------- */

static json_t *taps_json(void)
{
	json_t *list = json_array();

	for (int i = 0; i < NR_TAPS; i++)
		json_array_append_new(list, json_pack("{s:s,s:I,s:b}", "name", taps[i].name,
			"width", (json_int_t)taps[i].width, "detached", taps[i].detached));
	return list;
}

/* {tap: number of the sub-layer that writes it} of what sub-layer s can read, null: nobody */
static json_t *reads_json(const struct model *m, int s)
{
	json_t *o = json_object();

	for (int i = 0; i < NR_TAPS; i++)
		if (m->sub[s].mixer->taps_read & 1u << i)
			json_object_set_new(o, taps[i].name, m->sub[s].from[i] < 0 ? json_null() :
					    json_integer(m->sub[s].from[i]));
	return o;
}

/* Names of the taps that it writes and somebody reads. */
static json_t *writes_json(const struct model *m, int s)
{
	json_t *list = json_array();

	for (int i = 0; i < NR_TAPS; i++)
		if (m->sub[s].has & 1u << i)
			json_array_append_new(list, json_string(taps[i].name));
	return list;
}

static json_t *sublayer_json(const struct model *m, int s)
{
	const struct sublayer *sub = &m->sub[s];
	size_t end = sub->param + sub->elems;
	json_t *o = json_pack("{s:i,s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:I,s:I}",
		"layer", sub->layer,
		"mixer", sub->mixer->name,
		"norm", prefix_json(m, sub->norm, sub->param),
		"prefix", prefix_json(m, sub->param, end),
		"form", string_or_null(sub->mixer->form),
		"leaks", string_or_null(sub->mixer->leaks),
		"reads", reads_json(m, s),
		"writes", writes_json(m, s),
		"tensors", tensors_json(m, sub->norm, end),
		"cache_token", (json_int_t)sub->cache.token,
		"cache_const", (json_int_t)(sub->cache.size - sub->cache.token * T_MAX));

	set_work(o, m, s);
	return o;
}

/* Embedding, last norm and head. */
static json_t *head_json(const struct model *m)
{
	json_t *tensors = tensors_json(m, 0, m->sub[0].norm);
	json_t *o = json_pack("{s:o}", "tensors", tensors);

	json_array_extend(tensors, tensors_json(m, m->ln_f, m->param_elems));
	set_work(o, m, NR_SUB);
	return o;
}

static json_t *sublayers_json(const struct model *m)
{
	json_t *list = json_array();

	for (int s = 0; s < NR_SUB; s++)
		json_array_append_new(list, sublayer_json(m, s));
	return list;
}

/* {mixer: sentence} of what @get gives for those that have one */
static json_t *by_mixer(const struct model *m, const char *(*get)(const struct mixer *x))
{
	json_t *o = json_object();

	for (int s = 0; s < NR_SUB; s++)
		if (get(m->sub[s].mixer))
			json_object_set_new(o, m->sub[s].mixer->name,
					    json_string(get(m->sub[s].mixer)));
	return o;
}

static const char *form_of(const struct mixer *x)
{
	return x->form;
}

static const char *leaks_of(const struct mixer *x)
{
	return x->leaks;
}

/* {way to recompute: bytes of the arena in training} */
static json_t *recompute_json(const struct report *r)
{
	json_t *o = json_object();

	for (int kind = 0; kind < NR_RECOMPUTE; kind++)
		json_object_set_new(o, recompute_names[kind], json_integer(r->arena[kind]));
	return o;
}

void plan_json(const struct report *r)
{
	const struct plan *p = &r->plan[PHASE_TRAIN];
	json_t *o = json_pack("{s:s,s:I,s:I,s:I,s:f,s:f,s:f,s:i,s:b,s:I,s:I,s:o,s:o,s:o}",
		"run", CONFIG_RUN_NAME,
		"params", (json_int_t)p->params,
		"params_active", (json_int_t)p->params_active,
		"params_published", (json_int_t)p->params_published,
		"flops_token", p->flops_token,
		"flops_token_fwd", p->flops_token_fwd,
		"flops_token_decode", r->flops_decode,
		"slots", p->slots,
		"ranks_same_bits", r->same_bits,
		"cache_token", (json_int_t)p->cache_token,
		"cache_const", (json_int_t)p->cache_const,
		"memory_available", r->elsewhere ? json_null() : json_integer(arch_memory()),
		"forms", by_mixer(&r->m, form_of),
		"leaks", by_mixer(&r->m, leaks_of));

	json_object_set_new(o, "unit", json_string(data_unit()));
	if (r->data)
		json_object_set_new(o, "data", json_string(r->data));
	json_object_set_new(o, "recompute", json_string(recompute_names[r->m.recompute]));
	json_object_set_new(o, "recompute_arena", recompute_json(r));
	json_object_set_new(o, "train", phase_json(&r->plan[PHASE_TRAIN]));
	json_object_set_new(o, "eval", phase_json(&r->plan[PHASE_EVAL]));
	json_object_set_new(o, "decode", phase_json(&r->plan[PHASE_DECODE]));
	json_object_set_new(o, "taps", taps_json());
	json_object_set_new(o, "stack", head_json(&r->m));
	json_object_set_new(o, "sublayers", sublayers_json(&r->m));
	json_dumpf(o, stdout, JSON_INDENT(1) | JSON_PRESERVE_ORDER);
	putchar('\n');
	json_decref(o);
}
