// SPDX-License-Identifier: MIT
/*
 * tenon plan: parameters, bytes by phase, decode state and operations of this
 * binary, before anything is allocated.
 */
#include <inttypes.h>
#include <jansson.h>

#include "arch.h"
#include "dist.h"
#include "model.h"
#include "options.h"
#include "util.h"

#define MIB (1024.0 * 1024)

enum { PHASES = 3, PARTS = 7 };

static const char *const phase_names[PHASES] = {
	[PHASE_TRAIN] = "train", [PHASE_EVAL] = "eval", [PHASE_DECODE] = "decode",
};

/**
 * struct report - everything that is printed
 * @m: laid out, nothing placed
 * @plan: by phase; decode with @sequences
 * @sequences: of the decode phase
 * @flops_decode: operations of one decode step at the last position, per sequence
 */
struct report {
	struct model m;
	struct plan plan[PHASES];
	int sequences;
	double flops_decode;
};

/* One part of an arena. */
struct part {
	const char *name, *key;
	size_t bytes;
};

static void parts_of(const struct plan *p, struct part parts[PARTS])
{
	const struct part all[PARTS] = {
		{ "weights", "params", p->bytes_params },
		{ "gradients", "grads", p->bytes_grads },
		{ "moments", "optim", p->bytes_optim },
		{ "activations", "act", p->bytes_act },
		{ "scratch", "tmp", p->bytes_tmp },
		{ "caches", "cache", p->bytes_cache },
		{ "arena", "arena", p->bytes_arena },
	};

	for (int i = 0; i < PARTS; i++)
		parts[i] = all[i];
}

/*
 * A step at the last position computes what a forward over T positions does beyond
 * one over T - 1: causal products are counted by pairs.
 */
static double decode_flops(const struct model *m)
{
	double n = 2.0 * C * V;

	for (int s = 0; s < NR_SUB; s++) {
		const struct sublayer *sub = &m->sub[s];

		n += sub->mixer->flops(1, T_MAX, sub->read);
		if (T_MAX > 1)
			n -= sub->mixer->flops(1, T_MAX - 1, sub->read);
	}
	return n;
}

/* ---- text ------------------------------------------------------------------ */

static void print_memory(const struct report *r)
{
	struct part parts[PHASES][PARTS];

	for (int p = 0; p < PHASES; p++)
		parts_of(&r->plan[p], parts[p]);
	printf("memory, MiB  %12s %12s %12s\n", "train", "eval", "decode");
	for (int i = 0; i < PARTS; i++) {
		printf("  %-10s", parts[0][i].name);
		for (int p = 0; p < PHASES; p++)
			printf(" %12.3f", parts[p][i].bytes / MIB);
		putchar('\n');
	}
	printf("  free       %12.3f, the decode phase is for %d sequence%s\n", arch_memory() / MIB,
	       r->sequences, r->sequences == 1 ? "" : "s");
}

/* First layer behind @layer whose sub-layer has another cache, or NL. */
static int cache_run_end(const struct model *m, int layer, int word)
{
	const struct cache_size *c = &m->sub[layer * CONFIG_BLOCK_LEN + word].cache;

	while (++layer < NL) {
		const struct cache_size *next = &m->sub[layer * CONFIG_BLOCK_LEN + word].cache;

		if (next->size != c->size || next->token != c->token)
			break;
	}
	return layer;
}

/* One line for a run of layers with equal caches: the last layer's may be smaller. */
static void print_cache(const struct report *r)
{
	const struct plan *p = &r->plan[PHASE_DECODE];

	printf("cache        %zu bytes per token, constant state %zu bytes, of a sequence in all layers\n",
	       p->cache_token, p->cache_const);
	for (int word = 0; word < CONFIG_BLOCK_LEN; word++)
		for (int layer = 0, end; layer < NL; layer = end) {
			const struct sublayer *sub = &r->m.sub[layer * CONFIG_BLOCK_LEN + word];

			end = cache_run_end(&r->m, layer, word);
			if (sub->cache.size)
				printf("  %-10s %zu bytes per token, constant %zu, in each of layers %d to %d\n",
				       sub->mixer->name, sub->cache.token,
				       sub->cache.size - sub->cache.token * T_MAX, layer, end - 1);
		}
}

static bool power_of_two(int n)
{
	return n > 0 && !(n & (n - 1));
}

/* Ranks by micro-batches of each that make up a step, and whether bits agree. */
static void print_accumulation(const struct report *r)
{
	int n = CONFIG_GRADIENT_ACCUMULATION;

	printf("accumulation %d micro-batches a step in %d gradient buffer%s;", n,
	       r->plan[PHASE_TRAIN].slots, r->plan[PHASE_TRAIN].slots == 1 ? "" : "s");
	if (!power_of_two(n)) {
		printf(" ranks change the bits: CONFIG_GRADIENT_ACCUMULATION is no power of two\n");
		return;
	}
	for (int ranks = 1; ranks <= n; ranks *= 2)
		printf("%s %d x %d", ranks > 1 ? "," : "", ranks, n / ranks);
	printf(" (ranks x micro-batches)%s\n", n > 1 ? " give the same bits" : "");
}

/* The first block speaks for all. */
static void print_forms(const struct report *r)
{
	for (int i = 0; i < CONFIG_BLOCK_LEN; i++) {
		const struct mixer *x = r->m.sub[i].mixer;

		if (x->form)
			printf("form         %s executes its %s form\n", x->name, x->form);
		if (x->leaks)
			printf("leaks        %s: %s\n", x->name, x->leaks);
	}
}

static void print_report(const struct report *r)
{
	const struct plan *p = &r->plan[PHASE_TRAIN];

	printf("model        %s: \"%s\" x %d, width %d, %d heads, vocabulary %d (padded %d)\n",
	       CONFIG_RUN_NAME, CONFIG_BLOCK, NL, C, H, CONFIG_VOCAB_SIZE, V);
	printf("capacity     %d sequences x %d positions, %s\n", B_MAX, T_MAX, REAL_NAME);
	printf("parameters   %" PRIu64 "; as published, with the last layer's unread tensors, %" PRIu64 "\n",
	       p->params, p->params_published);
	print_memory(r);
	print_cache(r);
	printf("FLOPs/token  training step %.4g, forward %.4g, decode at the last position %.4g\n",
	       p->flops_token, p->flops_token_fwd, r->flops_decode);
	print_accumulation(r);
	print_forms(r);
}

/* ---- JSON ------------------------------------------------------------------ */

static json_t *phase_json(const struct plan *p)
{
	struct part parts[PARTS];
	json_t *o = json_object();

	parts_of(p, parts);
	for (int i = 0; i < PARTS; i++)
		json_object_set_new(o, parts[i].key, json_integer(parts[i].bytes));
	return o;
}

static json_t *forms_json(const struct report *r)
{
	json_t *o = json_object();

	for (int i = 0; i < CONFIG_BLOCK_LEN; i++)
		if (r->m.sub[i].mixer->form)
			json_object_set_new(o, r->m.sub[i].mixer->name,
					    json_string(r->m.sub[i].mixer->form));
	return o;
}

static void print_json(const struct report *r)
{
	const struct plan *p = &r->plan[PHASE_TRAIN];
	json_t *o = json_pack("{s:s,s:I,s:I,s:f,s:f,s:f,s:i,s:b,s:I,s:I,s:I,s:o}",
		"run", CONFIG_RUN_NAME,
		"params", (json_int_t)p->params,
		"params_published", (json_int_t)p->params_published,
		"flops_token", p->flops_token,
		"flops_token_fwd", p->flops_token_fwd,
		"flops_token_decode", r->flops_decode,
		"slots", p->slots,
		"ranks_same_bits", power_of_two(CONFIG_GRADIENT_ACCUMULATION),
		"cache_token", (json_int_t)p->cache_token,
		"cache_const", (json_int_t)p->cache_const,
		"memory_available", (json_int_t)arch_memory(),
		"forms", forms_json(r));

	for (int i = 0; i < PHASES; i++)
		json_object_set_new(o, phase_names[i], phase_json(&r->plan[i]));
	json_dumpf(o, stdout, JSON_INDENT(1) | JSON_PRESERVE_ORDER);
	putchar('\n');
	json_decref(o);
}

int verb_plan(int argc, char **argv)
{
	bool json = false, check = false;
	int64_t sequences = 1, device = 0;
	const struct opt opts[] = {
		{ "json", OPT_FLAG, &json, 0, 0, "for scripts" },
		{ "check", OPT_FLAG, &check, 0, 0, "end with status 2 where training does not fit" },
		{ "sequences", OPT_INT, &sequences, 1, B_MAX, "of the decode phase" },
		{ "device", OPT_INT, &device, 0, 1023, "device number" },
	};
	static struct report r;

	options_parse("plan", "", opts, ARRAY_SIZE(opts), argc, argv);
	dist_init();
	arch_init(device, 0);
	model_layout(&r.m);
	r.sequences = sequences;
	for (int p = 0; p < PHASES; p++)
		model_plan(&r.m, &r.plan[p], p, sequences);
	r.flops_decode = decode_flops(&r.m);
	if (check)
		plan_refuse(&r.plan[PHASE_TRAIN]);
	if (json)
		print_json(&r);
	else if (check)
		printf("plan: %" PRIu64 " parameters, %.1f of %.1f MiB: fits\n",
		       r.plan[PHASE_TRAIN].params, r.plan[PHASE_TRAIN].bytes_arena / MIB,
		       arch_memory() / MIB);
	else
		print_report(&r);
	return 0;
}
