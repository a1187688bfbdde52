// SPDX-License-Identifier: MIT
/*
 * Drawing the next token: temperature, top-k (Fan et al. 2018, arXiv 1805.04833)
 * and top-p (Holtzman et al. 2019, arXiv 1904.09751), in double.
 */
#include <math.h>
#include <stdlib.h>

#include "infer.h"
#include "util.h"

struct choice {
	double value;		/* logit, then probability */
	int id;
};

/* Likeliest first; of equals the smaller id. */
static int by_value(const void *pa, const void *pb)
{
	const struct choice *a = pa, *b = pb;

	if (a->value != b->value)
		return a->value < b->value ? 1 : -1;
	return a->id - b->id;
}

static int likeliest(const acc_t *logits, int n)
{
	int best = 0;

	for (int i = 1; i < n; i++)
		if (logits[i] > logits[best])
			best = i;
	return best;
}

/* Values become probabilities over the first n. */
static void softmax(struct choice *c, int n, double temperature)
{
	double max = c[0].value, sum = 0;

	for (int i = 1; i < n; i++)
		max = MAX(max, c[i].value);
	for (int i = 0; i < n; i++) {
		c[i].value = exp((c[i].value - max) / temperature);
		sum += c[i].value;
	}
	for (int i = 0; i < n; i++)
		c[i].value /= sum;
}

/* How many of n sorted choices it takes to reach p. */
static int reach(const struct choice *c, int n, double p)
{
	double sum = 0;

	for (int i = 0; i < n; i++) {
		sum += c[i].value;
		if (sum >= p)
			return i + 1;
	}
	return n;
}

/* Inverse of the cumulative distribution at u in (0, 1) times its total. */
static int draw(const struct choice *c, int n, double u)
{
	double total = 0, sum = 0;

	for (int i = 0; i < n; i++)
		total += c[i].value;
	for (int i = 0; i < n; i++) {
		sum += c[i].value;
		if (sum > u * total)
			return c[i].id;
	}
	return c[n - 1].id;
}

static struct choice *choices(const acc_t *logits, int n)
{
	struct choice *c = xmalloc(n * sizeof(*c));

	for (int i = 0; i < n; i++)
		c[i] = (struct choice){ .value = logits[i], .id = i };
	return c;
}

int sample_token(const struct sampler *s, const acc_t *logits, int n, uint64_t stream,
		 uint64_t index)
{
	struct choice *c;
	int id, keep = n;

	for (int i = 0; i < n; i++)
		if (!isfinite(logits[i]))
			die("generate: the logit of token %d is not finite; the checkpoint cannot be used",
			    i);
	if (s->temperature == 0)
		return likeliest(logits, n);
	c = choices(logits, n);
	if ((s->top_k && s->top_k < n) || s->top_p < 1) {
		qsort(c, n, sizeof(*c), by_value);
		if (s->top_k)
			keep = MIN(s->top_k, n);
	}
	softmax(c, keep, s->temperature);
	if (s->top_p < 1)
		keep = reach(c, keep, s->top_p);
	id = draw(c, keep, rng_uniform(s->seed, hash_name("sample") + stream, index));
	free(c);
	return id;
}
