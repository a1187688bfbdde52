// SPDX-License-Identifier: MIT
/*
 * Batches: which tokens a micro-batch sees is a pure function of (seed, its number), so a
 * resumed run goes on exactly where it was and ranks need no word with each other.
 */
#include <inttypes.h>
#include <string.h>

#include "data.h"
#include "dims.h"
#include "util.h"

static const char *const split_name[] = { "training", "validation" };

void data_open(const char *path)
{
	const uint64_t need = (uint64_t)BT + 1;

	source_open(path);
	for (int s = SPLIT_TRAIN; s <= SPLIT_VAL; s++)
		if (source_tokens(s) < need)
			die("%s: the %s split has %" PRIu64 " tokens, one batch needs %" PRIu64
			    ": give more data or lower BATCH_SIZE or BLOCK_SIZE",
			    source_describe(), split_name[s], source_tokens(s), need);
}

/*
 * Windows of an epoch: as many as fit wherever the epoch's shift of 0..t-1 puts the first
 * one, so that every epoch has the same number. Data for one window only is shifted as
 * far as it goes.
 */
static uint64_t epoch_windows(uint64_t tokens, int t)
{
	if (tokens < (uint64_t)t + 1)
		die("%" PRIu64 " training tokens are fewer than a sequence of %d and its target",
		    tokens, t);
	return MAX((tokens - t) / t, 1);
}

/* A sequence of t tokens from position @pos on, and the token behind each. */
static void read_row(enum split s, uint64_t pos, int t, int32_t *tok, int32_t *target)
{
	source_read(s, pos, t, tok);
	memcpy(target, tok + 1, (t - 1) * sizeof(*tok));
	source_read(s, pos + t, 1, target + t - 1);
}

void data_train_batch(uint64_t seed, uint64_t micro, int b, int t, int32_t *tok, int32_t *target)
{
	const uint64_t tokens = source_tokens(SPLIT_TRAIN), windows = epoch_windows(tokens, t);
	const uint64_t shifts = MIN((uint64_t)t, tokens - windows * t);

	for (int row = 0; row < b; row++) {
		uint64_t i = micro * b + row, epoch = i / windows;
		uint64_t shift = rng_u64(seed, hash_name("data.shift"), epoch) % shifts;
		uint64_t window = rng_permute(seed, hash_name("data.order") + epoch, i % windows,
					      windows);

		read_row(SPLIT_TRAIN, shift + window * t, t, tok + (size_t)row * t,
			 target + (size_t)row * t);
	}
}

int data_eval_batch(enum split s, int index, int count, int b, int t, int32_t *tok,
		    int32_t *target)
{
	const uint64_t tokens = source_tokens(s), last = (uint64_t)count * b - 1;

	if (tokens < (uint64_t)t + 1 || index < 0 || index >= count)
		die("%s split: batch %d of %d with sequences of %d + 1 from %" PRIu64 " tokens",
		    split_name[s], index, count, t, tokens);
	for (int row = 0; row < b; row++) {
		uint64_t i = (uint64_t)index * b + row;
		uint64_t pos = last ? (unsigned __int128)i * (tokens - t - 1) / last : 0;

		read_row(s, pos, t, tok + (size_t)row * t, target + (size_t)row * t);
	}
	return b;
}
