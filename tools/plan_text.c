// SPDX-License-Identifier: MIT
/*
 * The plan for people. What several layers or sub-layers have in common is printed once,
 * where it first appears, with the layers that have it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "plan.h"
#include "util.h"

/* Whether two sub-layers, by their numbers, are to be printed as one. */
typedef bool same_fn(const struct model *m, int a, int b);

/* ---- memory ---------------------------------------------------------------- */

static void print_memory(const struct report *r)
{
	char *there = r->elsewhere ? xstrdup("not here") : xasprintf("%.3f", arch_memory() / MIB);
	struct part parts[PHASES][PARTS];

	for (int p = 0; p < PHASES; p++)
		plan_parts(&r->plan[p], parts[p]);
	printf("memory, MiB  %12s %12s %12s\n", "train", "eval", "decode");
	for (int i = 0; i < PARTS; i++) {
		printf("  %-10s", parts[0][i].name);
		for (int p = 0; p < PHASES; p++)
			printf(" %12.3f", parts[p][i].bytes / MIB);
		putchar('\n');
	}
	printf("  free       %12s, the decode phase is for %d sequence%s\n", there, r->sequences,
	       r->sequences == 1 ? "" : "s");
	free(there);
}

static void print_recompute(const struct report *r)
{
	printf("recompute    %s; the arena in training, MiB:", recompute_names[r->m.recompute]);
	for (int kind = 0; kind < NR_RECOMPUTE; kind++)
		printf("%s %s %.3f", kind ? "," : "", recompute_names[kind], r->arena[kind] / MIB);
	putchar('\n');
}

/* ---- groups ---------------------------------------------------------------- */

static bool is_first(const struct model *m, int n, same_fn *same)
{
	for (int i = 0; i < n; i++)
		if (same(m, i, n))
			return false;
	return true;
}

static bool in_layer(const struct model *m, int s, int layer)
{
	return s < NR_SUB && m->sub[s].layer == layer;
}

/* "layer 3" or "layers 0-2, 4" of the layers marked; how many */
static int print_layers(const bool *marked)
{
	int count = 0, printed = 0;

	for (int l = 0; l < NL; l++)
		count += marked[l];
	printf("layer%s ", count == 1 ? "" : "s");
	for (int l = 0; l < NL; l++) {
		int end = l;

		if (!marked[l])
			continue;
		while (end + 1 < NL && marked[end + 1])
			end++;
		printf("%s%d", printed++ ? ", " : "", l);
		if (end > l)
			printf("-%d", end);
		l = end;
	}
	return count;
}

/* The layers of the sub-layers that are the same as @n. */
static int print_layers_of(const struct model *m, int n, same_fn *same)
{
	bool marked[NL] = { false };

	for (int s = 0; s < NR_SUB; s++)
		if (same(m, n, s))
			marked[m->sub[s].layer] = true;
	return print_layers(marked);
}

/* ---- the stack ------------------------------------------------------------- */

/* Sub-layers that begin layers with the same mixers. */
static bool same_layer(const struct model *m, int a, int b)
{
	int i = 0;

	if (m->sub[a].nth || m->sub[b].nth)
		return false;
	do {
		if (m->sub[a + i].mixer != m->sub[b + i].mixer)
			return false;
		i++;
	} while (in_layer(m, a + i, m->sub[a].layer) && in_layer(m, b + i, m->sub[b].layer));
	return in_layer(m, a + i, m->sub[a].layer) == in_layer(m, b + i, m->sub[b].layer);
}

static void print_stack(const struct model *m)
{
	for (int s = 0; s < NR_SUB; s++) {
		if (m->sub[s].nth || !is_first(m, s, same_layer))
			continue;
		printf("  ");
		print_layers_of(m, s, same_layer);
		putchar(':');
		for (int i = s; in_layer(m, i, m->sub[s].layer); i++)
			printf(" %s", m->sub[i].mixer->name);
		putchar('\n');
	}
}

static bool same_mixer(const struct model *m, int a, int b)
{
	return m->sub[a].mixer == m->sub[b].mixer;
}

static void print_forms(const struct model *m)
{
	for (int s = 0; s < NR_SUB; s++) {
		const struct mixer *x = m->sub[s].mixer;

		if (!is_first(m, s, same_mixer))
			continue;
		if (x->form)
			printf("form         %s: %s\n", x->name, x->form);
		if (x->leaks)
			printf("leaks        %s: %s\n", x->name, x->leaks);
	}
}

/* ---- taps ------------------------------------------------------------------ */

/* Whether sub-layers @a and @b read a tap, and have it from the same mixer. */
static bool same_link(const struct model *m, int tap, int a, int b)
{
	int from = m->sub[a].from[tap], other = m->sub[b].from[tap];

	return from >= 0 && other >= 0 && same_mixer(m, a, b) && same_mixer(m, from, other);
}

static bool is_first_link(const struct model *m, int tap, int reader)
{
	for (int s = 0; s < reader; s++)
		if (same_link(m, tap, s, reader))
			return false;
	return m->sub[reader].from[tap] >= 0;
}

/* One line for each pair of mixers that a tap connects. */
static void print_links(const struct model *m, int tap)
{
	for (int reader = 0; reader < NR_SUB; reader++) {
		int times = 0;

		if (!is_first_link(m, tap, reader))
			continue;
		for (int s = reader; s < NR_SUB; s++)
			times += same_link(m, tap, s, reader);
		printf("tap          %s", taps[tap].name);
		if (taps[tap].width)
			printf(", %zu wide", taps[tap].width);
		printf(": %s to %s, %d time%s%s\n",
		       m->sub[m->sub[reader].from[tap]].mixer->name, m->sub[reader].mixer->name,
		       times, times == 1 ? "" : "s", taps[tap].detached ? ", detached" : "");
	}
}

static void print_taps(const struct model *m)
{
	for (int tap = 0; tap < NR_TAPS; tap++)
		print_links(m, tap);
}

/* ---- decode ---------------------------------------------------------------- */

static bool same_cache(const struct model *m, int a, int b)
{
	const struct cache_size *x = &m->sub[a].cache, *y = &m->sub[b].cache;

	return same_mixer(m, a, b) && x->size == y->size && x->token == y->token;
}

static void print_cache(const struct report *r)
{
	const struct model *m = &r->m;
	const struct plan *p = &r->plan[PHASE_DECODE];

	printf("cache        %zu bytes per token, constant state %zu bytes, of a sequence in all layers\n",
	       p->cache_token, p->cache_const);
	for (int s = 0; s < NR_SUB; s++) {
		const struct sublayer *sub = &m->sub[s];

		if (!sub->cache.size || !is_first(m, s, same_cache))
			continue;
		printf("  %-10s %zu bytes per token, constant %zu, in ", sub->mixer->name,
		       sub->cache.token, sub->cache.size - sub->cache.token * T_MAX);
		puts(print_layers_of(m, s, same_cache) > 1 ? " each" : "");
	}
}

/* Ranks by micro-batches of each that make up a step, and whether bits agree. */
static void print_accumulation(const struct report *r)
{
	int n = CONFIG_GRADIENT_ACCUMULATION;

	printf("accumulation %d micro-batches a step in %d gradient buffer%s;", n,
	       r->plan[PHASE_TRAIN].slots, r->plan[PHASE_TRAIN].slots == 1 ? "" : "s");
	if (!r->same_bits) {
		printf(" ranks change the bits: CONFIG_GRADIENT_ACCUMULATION is no power of two\n");
		return;
	}
	for (int ranks = 1; ranks <= n; ranks *= 2)
		printf("%s %d x %d", ranks > 1 ? "," : "", ranks, n / ranks);
	printf(" (ranks x micro-batches)%s\n", n > 1 ? " give the same bits" : "");
}

void plan_text(const struct report *r)
{
	const struct plan *p = &r->plan[PHASE_TRAIN];

	printf("model        %s: %d layers, width %d, %d heads, vocabulary %d (padded %d)\n",
	       CONFIG_RUN_NAME, NL, C, H, CONFIG_VOCAB_SIZE, V);
	print_stack(&r->m);
	print_forms(&r->m);
	print_taps(&r->m);
	printf("capacity     %d sequences x %d positions, %s\n", B_MAX, T_MAX, ACT_NAME);
	printf("parameters   %" PRIu64 "\n", p->params);
	if (p->params_active != p->params)
		printf("             %" PRIu64 " of them active for a token\n", p->params_active);
	if (p->params_published != p->params)
		printf("             %" PRIu64 " with the last layer's unread tensors, as the published RA-MLA "
		       "table counts (Documentation/study.md)\n", p->params_published);
	print_memory(r);
	print_recompute(r);
	print_cache(r);
	printf("FLOPs/token  training step %.4g, forward %.4g, decode at the last position %.4g\n",
	       p->flops_token, p->flops_token_fwd, r->flops_decode);
	print_accumulation(r);
}
