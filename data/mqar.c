// SPDX-License-Identifier: MIT
/*
 * Multi-query associative recall: p pairs key value, then keys whose values are asked for.
 * Arora et al. 2023 (Zoology), arXiv 2312.04927, is form zoology; form study asks each key
 * once, at the end. The answer stands in no input behind the pairs.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data.h"
#include "dims.h"
#include "util.h"

enum {
	PAIRS = CONFIG_MQAR_PAIRS,
	HALF = CONFIG_VOCAB_SIZE / 2,	/* 0 fills, keys from 1 on, values from HALF on */
	SLOTS = (T_MAX - 2 * PAIRS) / 2,	/* of form zoology: places of two positions */
	ZOOLOGY = IS_ENABLED(CONFIG_MQAR_FORM_ZOOLOGY),
	NOISE = IS_ENABLED(CONFIG_MQAR_NOISE),
};

/* A sequence: seed of its split, number. */
struct sequence {
	uint64_t seed, j;
};

/* Where i goes in a permutation of 0..n-1 of this sequence's own. */
static int32_t permuted(const struct sequence *q, const char *name, int i, int n)
{
	return rng_permute(q->seed, hash_name(name) + q->j, i, n);
}

/* The i-th of @each numbers of this sequence, below n. */
static int32_t below(const struct sequence *q, const char *name, int each, int i, int n)
{
	return rng_u64(q->seed, hash_name(name), q->j * each + i) % n;
}

static void draw_values(const struct sequence *q, int32_t value[PAIRS])
{
	for (int i = 0; i < PAIRS; i++)
		value[i] = HALF + (ZOOLOGY ? permuted(q, "mqar.value", i, HALF) :
					     below(q, "mqar.value", PAIRS, i, HALF));
}

static int32_t fill(const struct sequence *q, int t)
{
	if (!ZOOLOGY)
		return 1 + below(q, "mqar.noise", T_MAX, t, CONFIG_VOCAB_SIZE - 1);
	return NOISE ? below(q, "mqar.noise", T_MAX, t, CONFIG_VOCAB_SIZE) : 0;
}

struct slot {
	double key;
	int i;
};

static int by_key(const void *a, const void *b)
{
	const struct slot *x = a, *y = b;

	return x->key != y->key ? (x->key > y->key) - (x->key < y->key) : x->i - y->i;
}

/* PAIRS of the slots, none twice, n with weight (n + 1)^(a - 1): Efraimidis and Spirakis 2006. */
static void draw_slots(const struct sequence *q, int slot[PAIRS])
{
	static struct slot all[SLOTS];

	for (int i = 0; i < SLOTS; i++) {
		double u = rng_uniform(q->seed, hash_name("mqar.slot"), q->j * SLOTS + i);

		all[i] = (struct slot){ -log(u) / pow(i + 1, CONFIG_MQAR_POWER_A - 1), i };
	}
	qsort(all, SLOTS, sizeof(*all), by_key);
	for (int r = 0; r < PAIRS; r++)
		slot[r] = all[r].i;
}

/* Where query r stands, and which pair it asks. */
static void draw_queries(const struct sequence *q, int at[PAIRS], int pair[PAIRS])
{
	if (ZOOLOGY)
		draw_slots(q, at);
	for (int r = 0; r < PAIRS; r++) {
		at[r] = ZOOLOGY ? 2 * (PAIRS + at[r]) : T_MAX - PAIRS + r;
		pair[r] = ZOOLOGY ? r : permuted(q, "mqar.query", r, PAIRS);
	}
}

/* The whole sequence, of given values. */
static void write_row(const struct sequence *q, const int32_t value[PAIRS], int32_t *tok,
		      int32_t *target)
{
	int at[PAIRS], pair[PAIRS];

	for (int i = 0; i < PAIRS; i++) {
		tok[2 * i] = 1 + permuted(q, "mqar.key", i, HALF - 1);
		tok[2 * i + 1] = value[i];
	}
	for (int t = 2 * PAIRS; t < T_MAX; t++)
		tok[t] = fill(q, t);
	memset(target, -1, T_MAX * sizeof(*target));
	draw_queries(q, at, pair);
	for (int r = 0; r < PAIRS; r++) {
		tok[at[r]] = tok[2 * pair[r]];
		target[at[r]] = value[pair[r]];
	}
}

void draw_row(uint64_t seed, uint64_t j, int32_t *tok, int32_t *target)
{
	const struct sequence q = { seed, j };
	int32_t value[PAIRS];

	draw_values(&q, value);
	write_row(&q, value, tok, target);
}

const char *draw_open(void)
{
	static char text[128];

	snprintf(text, sizeof(text), "associative recall, %s form, %d pairs", CONFIG_MQAR_FORM, PAIRS);
	if (ZOOLOGY)
		snprintf(text + strlen(text), sizeof(text) - strlen(text), ", gaps a = %g%s",
			 CONFIG_MQAR_POWER_A, NOISE ? ", noise" : "");
	return text;
}
