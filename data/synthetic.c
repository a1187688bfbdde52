// SPDX-License-Identifier: MIT
/*
 * Sequences that are drawn: sequence j of a split is a pure function of DATA_SEED, the split
 * and j, so that nothing is stored and none is read twice unless an epoch says so.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data.h"
#include "dims.h"
#include "options.h"
#include "util.h"

enum { DIGEST_ROWS = 256 };	/* validation sequences that the SHA-256 is of */

static const int64_t split_rows[] = {
	[SPLIT_TRAIN] = CONFIG_DATA_TRAIN_SEQS,
	[SPLIT_VAL] = CONFIG_DATA_VAL_SEQS,
	[SPLIT_TEST] = CONFIG_DATA_TEST_SEQS,
};

static char *line;

static void draw(enum split s, uint64_t j, int32_t *tok, int32_t *target)
{
	draw_row((uint64_t)CONFIG_DATA_SEED + s, j, tok, target);
}

/* Of the description and of the first validation sequences, which a library's log() made. */
static void digest(const char *text, char hex[65])
{
	int32_t tok[T_MAX], target[T_MAX];
	struct sha256 sha;

	sha256_init(&sha);
	sha256_update(&sha, text, strlen(text));
	for (int j = 0; j < MIN(DIGEST_ROWS, CONFIG_DATA_VAL_SEQS); j++) {
		draw(SPLIT_VAL, j, tok, target);
		sha256_update(&sha, tok, sizeof(tok));
		sha256_update(&sha, target, sizeof(target));
	}
	sha256_final(&sha, hex);
}

void data_open(const char *path)
{
	char hex[65], *text;

	if (*path)
		die("%s %s: this binary draws its data (`tenon config | grep DATA_`); leave it away",
		    flag_words("data"), path);
	text = xasprintf("%s, seed %d: %s%d training, %d validation, %d test sequences of %d",
			 draw_open(), CONFIG_DATA_SEED,
			 IS_ENABLED(CONFIG_DATA_FRESH) ? "fresh, " : "", CONFIG_DATA_TRAIN_SEQS,
			 CONFIG_DATA_VAL_SEQS, CONFIG_DATA_TEST_SEQS, T_MAX);
	digest(text, hex);
	line = xasprintf("%s, sha256 %s", text, hex);
	free(text);
}

const char *source_describe(void)
{
	return line;
}

/* The number of the i-th training sequence. */
static uint64_t train_number(uint64_t seed, uint64_t i)
{
	const uint64_t rows = CONFIG_DATA_TRAIN_SEQS;

	if (IS_ENABLED(CONFIG_DATA_FRESH))
		return i;
	return rng_permute(seed, hash_name("data.order") + i / rows, i % rows, rows);
}

static void whole_rows(int t)
{
	if (t != T_MAX)
		die_bug("drawn sequences have %d tokens, not %d", T_MAX, t);
}

void data_train_batch(uint64_t seed, uint64_t micro, int b, int t, int32_t *tok, int32_t *target)
{
	whole_rows(t);
	for (int row = 0; row < b; row++)
		draw(SPLIT_TRAIN, train_number(seed, micro * b + row), tok + (size_t)row * t,
		     target + (size_t)row * t);
}

int data_eval_batch(enum split s, int index, int count, int b, int t, int32_t *tok,
		    int32_t *target)
{
	int64_t first = (int64_t)index * b, rows = MIN(split_rows[s] - first, b);

	(void)count;
	whole_rows(t);
	for (int row = 0; row < rows; row++)
		draw(s, first + row, tok + (size_t)row * t, target + (size_t)row * t);
	return MAX(rows, 0);
}

/* Counts of neighbours say little of what is drawn: a chain has its floor. */
double data_bigram_loss(void)
{
	return NAN;
}
