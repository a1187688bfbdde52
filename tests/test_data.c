// SPDX-License-Identifier: MIT
/*
 * Batches and the order-1 baseline, over a source made of a few numbers.
 */
#include <math.h>

#include "scratch.h"

/* Small and fixed: the numbers below are worked out for it. */
#undef CONFIG_VOCAB_SIZE
#define CONFIG_VOCAB_SIZE 3

/* The code under test, over this file's source_*(); the linked one has its own. */
#define data_open test_open
#define data_train_batch test_train_batch
#define data_eval_batch test_eval_batch
#define data_bigram_loss test_bigram_loss
#define source_open fake_open
#define source_tokens fake_tokens
#define source_read fake_read
#define source_describe fake_describe
#include "../data/batch.c"
#include "../data/bigram.c"

enum { T = 8, B = 3 };

static uint64_t fake_n[2];
static const int32_t *fake_token[2];	/* NULL: a token is its position */

void fake_open(const char *path)
{
	(void)path;
}

uint64_t fake_tokens(enum split s)
{
	return fake_n[s];
}

void fake_read(enum split s, uint64_t pos, int n, int32_t *dst)
{
	if (pos + n > fake_n[s])
		die_bug("read beyond the split");
	for (int i = 0; i < n; i++)
		dst[i] = fake_token[s] ? fake_token[s][pos + i] : (int32_t)(pos + i);
}

const char *fake_describe(void)
{
	return "fake";
}

static int32_t target[2 * B * T];	/* of the batch read last */

/* Every row must be t neighbours, and its targets the ones behind them. */
static bool rows_whole(const int32_t *tok)
{
	for (int i = 0; i < B; i++)
		for (int j = 0; j < T; j++)
			if (tok[i * T + j] != tok[i * T] + j || target[i * T + j] != tok[i * T] + j + 1)
				return false;
	return true;
}

/* An epoch's windows are apart, all at one shift, and leave at most 2t tokens out. */
static void train_epoch_covers_data(uint64_t tokens)
{
	const uint64_t windows = tokens > 2 * T ? (tokens - T) / T : 1;
	int32_t tok[B * T];
	int bad = 0, shift = -1, epochs = 5;
	char *seen = xcalloc(tokens + 1, 1);

	fake_n[SPLIT_TRAIN] = tokens;
	for (uint64_t i = 0; i < windows * epochs; i++) {
		int32_t *row = tok + i % B * T;

		if (i % B == 0)
			test_train_batch(7, i / B, B, T, tok, target);
		if (i % windows == 0) {
			shift = *row % T;
			memset(seen, 0, tokens);
		}
		bad += !rows_whole(tok) || *row % T != shift || seen[*row]++;
		bad += *row < 0 || *row + T + 1 > (int)tokens;
	}
	ok(!bad && windows * T + 2 * T >= tokens, "train_epoch_covers_data: %d tokens, %d windows",
	   (int)tokens, (int)windows);
	free(seen);
}

static void train_batch_is_a_function_of_seed_and_number(void)
{
	int32_t a[B * T], b[B * T], two[2 * B * T];
	int same = 0, shifts[T] = { 0 }, seen = 0;

	fake_n[SPLIT_TRAIN] = 10000;
	test_train_batch(7, 123456789, B, T, a, target);
	test_train_batch(7, 0, B, T, b, target);
	test_train_batch(7, 123456789, B, T, b, target);
	ok(!memcmp(a, b, sizeof(a)), "train_batch: the same again");
	for (int i = 0; i < 100; i++) {
		test_train_batch(7, i, B, T, a, target);
		test_train_batch(8, i, B, T, b, target);
		same += !memcmp(a, b, sizeof(a));
	}
	ok(same < 3, "train_batch: another seed, another order");
	test_train_batch(7, 5, 2 * B, T, two, target);
	test_train_batch(7, 10, B, T, a, target);
	test_train_batch(7, 11, B, T, b, target);
	ok(!memcmp(a, two, sizeof(a)) && !memcmp(b, two + B * T, sizeof(b)),
	   "train_batch: sequence micro * b + row");
	fake_n[SPLIT_TRAIN] = 100;
	for (int i = 0; i < 1000; i++) {
		test_train_batch(7, i, B, T, a, target);
		shifts[a[0] % T]++;
	}
	for (int i = 0; i < T; i++)
		seen += shifts[i] > 0;
	ok(seen == T, "train_batch: every alignment comes, %d of %d", seen, T);
}

/* The windows of two epochs come in two orders. */
static void train_epochs_are_permuted_anew(void)
{
	enum { WINDOWS = 99 };
	int32_t tok[T], order[2][WINDOWS];
	int same = 0, sorted = 0;

	fake_n[SPLIT_TRAIN] = (WINDOWS + 1) * T;
	for (int i = 0; i < 2 * WINDOWS; i++) {
		test_train_batch(7, i, 1, T, tok, target);
		order[i / WINDOWS][i % WINDOWS] = tok[0] / T;
	}
	for (int i = 0; i < WINDOWS; i++) {
		same += order[0][i] == order[1][i];
		sorted += order[0][i] == i;
	}
	/* one place in common on average, ten once in a million */
	ok(same < 10 && sorted < 10, "train_epochs_are_permuted_anew: %d %d", same, sorted);
}

static void eval_batches_are_spread(void)
{
	enum { COUNT = 10 };
	int32_t tok[B * T], last = -1, first = -1;
	int bad = 0, least = 1 << 30, most = 0;

	fake_n[SPLIT_VAL] = 1234;
	for (int i = 0; i < COUNT; i++) {
		test_eval_batch(SPLIT_VAL, i, COUNT, B, T, tok, target);
		bad += !rows_whole(tok);
		for (int r = 0; r < B; r++) {
			int32_t at = tok[r * T];

			if (last >= 0) {
				least = MIN(least, at - last);
				most = MAX(most, at - last);
			} else {
				first = at;
			}
			last = at;
		}
	}
	ok(!bad && first == 0 && last == 1234 - T - 1 && most - least <= 1,
	   "eval_batches_are_spread: from %d to %d, %d to %d apart", first, last, least, most);
	fake_n[SPLIT_VAL] = T + 1;
	test_eval_batch(SPLIT_VAL, 0, 1, 1, T, tok, target);
	ok(tok[0] == 0 && target[T - 1] == T, "eval_batch: one window");
}

static void open_one(const void *arg)
{
	(void)arg;
	test_open("");
}

static void open_refuses_short_splits(void)
{
	char words[64];

	fake_n[SPLIT_TRAIN] = fake_n[SPLIT_VAL] = BT + 1;
	test_open("");
	ok(true, "data_open: one batch is enough");
	fake_n[SPLIT_VAL] = BT;
	snprintf(words, sizeof(words), "validation split has %d tokens, one batch needs %d", BT,
		 BT + 1);
	ok(dies(open_one, NULL, words), "data_open refuses a short validation split");
	fake_n[SPLIT_TRAIN] = 0;
	ok(dies(open_one, NULL, "training split has 0 tokens"), "data_open refuses no tokens");
}

/*
 * Training 0 1 0 0 1: three pairs begin with 0 (once 0, twice 1: two kinds), one with 1.
 * The four tokens with one before them: P(0) = P(1) = 2.5 / 5.5, P(2) = 0.5 / 5.5.
 */
static void bigram_by_hand(void)
{
	static const int32_t train[] = { 0, 1, 0, 0, 1 }, val[] = { 0, 1, 1, 2, 0 };
	const double p01 = (2 + 2 * 2.5 / 5.5) / 5, p11 = 2.5 / 5.5 / 2, p12 = 0.5 / 5.5 / 2;
	const double p20 = 2.5 / 5.5;
	double want = -(log(p01) + log(p11) + log(p12) + log(p20)) / 4;

	fake_token[SPLIT_TRAIN] = train;
	fake_token[SPLIT_VAL] = val;
	fake_n[SPLIT_TRAIN] = fake_n[SPLIT_VAL] = 5;
	ok(fabs(test_bigram_loss() - want) < 1e-12, "bigram_by_hand: %g", test_bigram_loss());
}

/* A chain whose entropy is known: y = x + 1 with chance 3/4, else x, mod 3. */
static void bigram_finds_the_entropy(void)
{
	enum { N = 200000 };
	const double entropy = 0.25 * log(4) + 0.75 * log(4. / 3);
	int32_t *chain = xmalloc(2 * N * sizeof(*chain));
	double got;

	chain[0] = 0;
	for (int i = 1; i < 2 * N; i++)
		chain[i] = (chain[i - 1] + (rng_uniform(3, 1, i) < 0.75)) % 3;
	fake_token[SPLIT_TRAIN] = chain;
	fake_token[SPLIT_VAL] = chain + N;
	fake_n[SPLIT_TRAIN] = fake_n[SPLIT_VAL] = N;
	got = test_bigram_loss();
	/* five standard errors: sd of -log p is log(3) sqrt(3/16) = 0.476 */
	ok(fabs(got - entropy) < 5 * 0.476 / sqrt(N), "bigram_finds_the_entropy: %g, %g", got,
	   entropy);
	free(chain);
}

int main(void)
{
	train_epoch_covers_data(1000);
	train_epoch_covers_data(1001);
	train_epoch_covers_data(1007);
	train_epoch_covers_data(3 * T);
	train_epoch_covers_data(T + 1);
	train_batch_is_a_function_of_seed_and_number();
	train_epochs_are_permuted_anew();
	eval_batches_are_spread();
	open_refuses_short_splits();
	bigram_by_hand();
	bigram_finds_the_entropy();
	return tap_done();
}
