// SPDX-License-Identifier: MIT
/*
 * A Markov chain of order 1 or 2 whose table is one for all splits: a context has five
 * successors, which four fifths of the time come by their weights; else any symbol comes,
 * all alike. What a model can reach is known exactly.
 */
#include <math.h>
#include <string.h>

#include "data.h"
#include "dims.h"
#include "util.h"

enum {
	ORDER = CONFIG_MARKOV_ORDER,
	SYMBOLS = CONFIG_MARKOV_SYMBOLS ? CONFIG_MARKOV_SYMBOLS : CONFIG_VOCAB_SIZE,
	CONTEXTS = ORDER == 2 ? SYMBOLS * SYMBOLS : SYMBOLS,
	SUCCESSORS = 5,
};

#define LIKELY 0.8	/* how often a successor comes by its weight */
#define ANY 0.2		/* and how often any symbol does */

/**
 * struct context - what may follow some tokens
 * @next: successors, all different
 * @sum: their weights, each with those before it; the last is 1 but for rounding, 0: not
 *	drawn yet
 */
struct context {
	int32_t next[SUCCESSORS];
	double sum[SUCCESSORS];
};

static struct context *table;	/* [CONTEXTS] */

static void draw_context(struct context *x, uint64_t c)
{
	const uint64_t seed = CONFIG_DATA_SEED, stream = hash_name("markov.weight");
	double weight[SUCCESSORS], total = 0, sum = 0;

	for (int i = 0; i < SUCCESSORS; i++) {
		uint64_t at = 2 * (SUCCESSORS * c + i);

		x->next[i] = rng_permute(seed, hash_name("markov.successor") + c, i, SYMBOLS);
		weight[i] = -log(rng_uniform(seed, stream, at) * rng_uniform(seed, stream, at + 1));
		total += weight[i];
	}
	for (int i = 0; i < SUCCESSORS; i++)
		x->sum[i] = sum += weight[i] / total;
}

/* The context that ends with x[0], as many tokens as the order before it. */
static const struct context *context_at(const int32_t *x)
{
	int64_t c = ORDER == 2 ? (int64_t)x[-1] * SYMBOLS + x[0] : x[0];

	if (!table[c].sum[SUCCESSORS - 1])
		draw_context(&table[c], c);
	return &table[c];
}

static int32_t next_token(const struct context *x, double u)
{
	int i = 0;

	if (u >= LIKELY)
		return MIN((int32_t)(SYMBOLS * (u - LIKELY) / ANY), SYMBOLS - 1);
	while (i < SUCCESSORS - 1 && x->sum[i] <= u / LIKELY)
		i++;
	return x->next[i];
}

void draw_row(uint64_t seed, uint64_t j, int32_t *tok, int32_t *target)
{
	const uint64_t stream = hash_name("markov.draw");
	int32_t all[T_MAX + 1];

	for (int t = 0; t <= T_MAX; t++) {
		double u = rng_uniform(seed, stream, j * (T_MAX + 1) + t);

		all[t] = t < ORDER ? (int32_t)(u * SYMBOLS) : next_token(context_at(all + t - 1), u);
	}
	memcpy(tok, all, T_MAX * sizeof(*tok));
	memcpy(target, all + 1, T_MAX * sizeof(*target));
}

static double probability(const struct context *x, int32_t y)
{
	double p = ANY / SYMBOLS;

	for (int i = 0; i < SUCCESSORS; i++)
		if (x->next[i] == y)
			p += LIKELY * (x->sum[i] - (i ? x->sum[i - 1] : 0));
	return p;
}

double markov_floor(const int32_t *tok, const int32_t *target)
{
	double nats = ORDER == 2 ? log(SYMBOLS) : 0;

	for (int t = ORDER - 1; t < T_MAX; t++)
		nats -= log(probability(context_at(tok + t), target[t]));
	return nats;
}

const char *draw_open(void)
{
	static char text[64];

	if (!table)
		table = xcalloc(CONTEXTS, sizeof(*table));
	snprintf(text, sizeof(text), "Markov chain of order %d, %d symbols", ORDER, SYMBOLS);
	return text;
}
