// SPDX-License-Identifier: MIT
/*
 * tenon bench --decode: time steps of the decode caches. Random weights, caches filled
 * with random tokens, then the same next token of every sequence again and again, so
 * that each step is of the same work. A step begins with the tokens on the host and ends
 * with the logits on the device; how long these then take to the host stands beside it. A
 * step must read the weights and the caches once: their bytes over its time stand beside
 * the speed of a copy.
 */
#include <jansson.h>
#include <stdlib.h>

#include "arch.h"
#include "infer.h"
#include "util.h"

enum {
	COPY_BYTES = 1 << 28,	/* far beyond every cache */
	COPY_TIMES = 5,		/* the fastest of them counts */
};

#define GB 1e9

/* What was measured. */
struct decode_times {
	double step;		/* seconds, median */
	double logits;		/* the same, of the logits' way to the host */
	double weights, cache;	/* bytes that a step must read */
	double copy;		/* bytes a second, read and written */
};

/* Bytes read and written a second by the arch's own copy. */
static double copy_speed(void)
{
	char *mem = arch_alloc(2 * (size_t)COPY_BYTES);
	struct arch_mark mark[2] = { };
	double best = 0;

	for (int i = 0; i < COPY_TIMES; i++) {
		arch_mark_set(&mark[0]);
		arch_copy(mem + COPY_BYTES, mem, COPY_BYTES);
		arch_mark_set(&mark[1]);
		best = MAX(best, 2.0 * COPY_BYTES / arch_mark_seconds(&mark[0], &mark[1]));
	}
	arch_free(mem, 2 * (size_t)COPY_BYTES);
	return best;
}

/* All but positions and an untied head's embedding, of which a step reads single rows. */
static double weight_bytes(const struct model *m)
{
	double n = 0;

	for (int i = 0; i < m->nr_entries; i++)
		n += m->entries[i].numel;
	if (POSITIONS)
		n -= model_find(m, "wpe.weight")->numel;
	if (!TIED)
		n -= model_find(m, "wte.weight")->numel;
	return n * sizeof(param_t);
}

/* @b sequences of @t tokens, all different. */
static void fill(struct decoder *d, uint64_t seed, int b, int t)
{
	int32_t len[B_MAX], *tok = xmalloc(sizeof(*tok) * b * t);

	for (int i = 0; i < b * t; i++)
		tok[i] = rng_u64(seed, hash_name("bench"), i) % CONFIG_VOCAB_SIZE;
	for (int i = 0; i < b; i++)
		len[i] = t;
	decoder_fill(d, tok, len, b, t);
	free(tok);
}

/* Seconds of each step, and of its logits' way to the host. */
static void time_steps(struct decoder *d, const struct decode_bench *x, double *step,
		       double *logits)
{
	int32_t tok[B_MAX], pos[B_MAX];
	double from, there;
	const acc_t *row;

	for (int i = 0; i < x->sequences; i++) {
		tok[i] = i % CONFIG_VOCAB_SIZE;
		pos[i] = x->length;
	}
	for (int i = -x->warmup; i < x->steps; i++) {
		from = now();
		row = model_step(&d->m, tok, pos, x->sequences);
		arch_sync();
		there = now();
		arch_get(d->logits, row, sizeof(*row) * x->sequences * V);
		if (i < 0)
			continue;
		step[i] = there - from;
		logits[i] = now() - there;
	}
}

static void print_times(const struct decode_bench *x, const struct decode_times *t)
{
	double bytes = t->weights + t->cache;

	printf("%.1f tok/s, %.3f ms/step (median of %d steps of %d sequence%s behind %d tokens)\n",
	       x->sequences / t->step, t->step * 1e3, x->steps, x->sequences,
	       x->sequences == 1 ? "" : "s", x->length);
	printf("  logits:    %.3f ms more to the host\n", t->logits * 1e3);
	printf("  read once: %.3f GB of weights, %.3f GB of caches: %.1f GB/s\n",
	       t->weights / GB, t->cache / GB, bytes / t->step / GB);
	printf("  a copy:    %.1f GB/s; step / (bytes at that speed) = %.2f\n", t->copy / GB,
	       t->step * t->copy / bytes);
}

static void print_json(const struct decode_bench *x, const struct decode_times *t)
{
	json_t *o = json_object();

	json_object_set_new(o, "step", json_real(t->step));
	json_object_set_new(o, "logits", json_real(t->logits));
	json_object_set_new(o, "steps", json_integer(x->steps));
	json_object_set_new(o, "sequences", json_integer(x->sequences));
	json_object_set_new(o, "length", json_integer(x->length));
	json_object_set_new(o, "weight_bytes", json_real(t->weights));
	json_object_set_new(o, "cache_bytes", json_real(t->cache));
	json_object_set_new(o, "copy_bytes_s", json_real(t->copy));
	json_object_set_new(o, "device", json_string(arch_describe()));
	json_dumpf(o, stdout, JSON_INDENT(1) | JSON_PRESERVE_ORDER);
	putchar('\n');
	json_decref(o);
}

void decode_bench(const struct decode_bench *x)
{
	double *step = xcalloc(x->steps, sizeof(*step)), *logits = xcalloc(x->steps, sizeof(*logits));
	static struct decoder d;
	struct decode_times t;
	struct plan plan;

	decoder_place(&d, x->sequences);
	model_init_params(&d.m, NULL, x->seed);
	model_plan(&d.m, &plan, PHASE_DECODE, x->sequences);
	fill(&d, x->seed, x->sequences, x->length);
	time_steps(&d, x, step, logits);
	t.step = median(step, x->steps);
	t.logits = median(logits, x->steps);
	t.weights = weight_bytes(&d.m);
	t.cache = (double)x->sequences * (plan.cache_const + (double)plan.cache_token * x->length);
	t.copy = copy_speed();
	if (x->json)
		print_json(x, &t);
	else
		print_times(x, &t);
	decoder_close(&d);
	free(step);
	free(logits);
}
