// SPDX-License-Identifier: MIT
/*
 * Drawing tokens: frequencies, the sets that top-k and top-p leave, ties.
 */
#include <math.h>

#include "../infer/infer.h"
#include "tap.h"

enum { N = 6, DRAWS = 20000 };

static const acc_t logits[N] = { 1, 0, 2, 2, -1, 0.5 };

/* How often each token is drawn. */
static void count(const struct sampler *s, int hits[N])
{
	for (int i = 0; i < N; i++)
		hits[i] = 0;
	for (int i = 0; i < DRAWS; i++)
		hits[sample_token(s, logits, N, 0, i)]++;
}

/* Tokens drawn at all, as bits. */
static unsigned int set_of(const struct sampler *s)
{
	unsigned int set = 0;
	int hits[N];

	count(s, hits);
	for (int i = 0; i < N; i++)
		set |= (hits[i] > 0) << i;
	return set;
}

/*
 * Sum of (observed - expected)^2 / expected over N cells: five degrees of freedom
 * exceed 30 with probability 1.5e-5, and the draws are the same every time.
 */
static void frequencies_match(double temperature)
{
	const struct sampler s = { .temperature = temperature, .top_p = 1, .seed = 5 };
	double p[N], sum = 0, chi = 0;
	int hits[N];

	for (int i = 0; i < N; i++)
		sum += p[i] = exp(logits[i] / temperature);
	count(&s, hits);
	for (int i = 0; i < N; i++) {
		double expected = DRAWS * p[i] / sum;

		chi += (hits[i] - expected) * (hits[i] - expected) / expected;
	}
	ok(chi < 30, "sample_frequencies_are_softmax at temperature %g (chi square %.2f)", temperature,
	   chi);
}

int main(void)
{
	struct sampler s = { .temperature = 1, .top_p = 1, .seed = 5 };

	frequencies_match(0.7);
	frequencies_match(1);
	frequencies_match(3);

	s.top_k = 1;
	ok(set_of(&s) == 1 << 2, "top_k_1_takes_the_smaller_of_equal_ids");
	s.top_k = 3;
	ok(set_of(&s) == (1 << 2 | 1 << 3 | 1 << 0), "top_k_3_leaves_the_three_likeliest");
	s.top_k = N + 3;
	ok(set_of(&s) == (1 << N) - 1, "top_k_beyond_the_vocabulary_leaves_all");

	/* probabilities: 0.336 twice, then 0.124, 0.075, 0.045, 0.017 */
	s.top_k = 0;
	s.top_p = 0.5;
	ok(set_of(&s) == (1 << 2 | 1 << 3), "top_p_leaves_the_fewest_that_reach_p");
	s.top_p = 0.3;
	ok(set_of(&s) == 1 << 2, "top_p_below_the_first_leaves_one");
	s.top_k = 2;
	s.top_p = 0.9;
	ok(set_of(&s) == (1 << 2 | 1 << 3), "top_p_counts_within_top_k");

	s = (struct sampler){ .temperature = 0, .top_p = 1 };
	ok(sample_token(&s, logits, N, 0, 0) == 2, "temperature_0_takes_the_first_of_the_likeliest");
	s = (struct sampler){ .temperature = 1, .top_p = 1, .seed = 5 };
	ok(sample_token(&s, logits, N, 1, 7) == sample_token(&s, logits, N, 1, 7),
	   "sample_is_a_function_of_its_arguments");
	return tap_done();
}
