// SPDX-License-Identifier: MIT
/*
 * The order-1 baseline: what counting pairs of tokens reaches on the same split.
 */
#include <math.h>
#include <stdlib.h>

#include "data.h"
#include "util.h"

enum {
	VOCAB = CONFIG_VOCAB_SIZE,
	VOCAB_MAX = 4096,		/* the pair table has VOCAB^2 counts: 128 MiB */
	CHUNK = 1 << 15,		/* tokens read at a time */
};

/*
 * @pair: [VOCAB][VOCAB] how often y followed x
 * @total: [VOCAB] how often anything followed x
 * @kinds: [VOCAB] how many different y followed x
 * @unigram: [VOCAB] how often y occurred
 */
struct bigram {
	uint64_t *pair, *total, *kinds, *unigram, tokens;
};

typedef void (*pair_fn)(void *ctx, int32_t x, int32_t y);

/* Call @fn for every pair of neighbours of a split. */
static void each_pair(enum split s, pair_fn fn, void *ctx)
{
	int32_t *tok = xmalloc((CHUNK + 1) * sizeof(*tok));
	uint64_t pos = 0, pairs = source_tokens(s) - 1;

	while (pos < pairs) {
		int n = (int)MIN(pairs - pos, (uint64_t)CHUNK);

		source_read(s, pos, n + 1, tok);
		for (int i = 0; i < n; i++)
			fn(ctx, tok[i], tok[i + 1]);
		pos += n;
	}
	free(tok);
}

static void count_pair(void *ctx, int32_t x, int32_t y)
{
	struct bigram *m = ctx;

	m->kinds[x] += !m->pair[(size_t)x * VOCAB + y]++;
	m->total[x]++;
	m->unigram[y]++;
	m->tokens++;
}

/* P(y|x), data.h; never 0. */
static double probability(const struct bigram *m, int32_t x, int32_t y)
{
	double any = (m->unigram[y] + 0.5) / (m->tokens + 0.5 * VOCAB);
	double prior = MAX(m->kinds[x], 1);

	return (m->pair[(size_t)x * VOCAB + y] + prior * any) / (m->total[x] + prior);
}

/* @model: counted; @nats: sum over @pairs so far */
struct score {
	const struct bigram *model;
	double nats, pairs;
};

static void score_pair(void *ctx, int32_t x, int32_t y)
{
	struct score *s = ctx;

	s->nats -= log(probability(s->model, x, y));
	s->pairs++;
}

double data_bigram_loss(void)
{
	struct bigram m = { 0 };
	struct score s = { .model = &m };

	if (VOCAB > VOCAB_MAX)
		return NAN;
	m.pair = xcalloc((size_t)VOCAB * VOCAB, sizeof(*m.pair));
	m.total = xcalloc(VOCAB, sizeof(*m.total));
	m.kinds = xcalloc(VOCAB, sizeof(*m.kinds));
	m.unigram = xcalloc(VOCAB, sizeof(*m.unigram));
	each_pair(SPLIT_TRAIN, count_pair, &m);
	each_pair(SPLIT_VAL, score_pair, &s);
	free(m.pair);
	free(m.total);
	free(m.kinds);
	free(m.unigram);
	return s.nats / s.pairs;
}
