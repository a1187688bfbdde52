/* SPDX-License-Identifier: MIT */
/**
 * DOC: data
 *
 * A source (one per binary, a link-time choice: data/corpus.c, text.c, shard.c)
 * offers two splits of token ids; data/batch.c cuts batches from them. The
 * position is a pure function of (seed, micro-batch number). Or sequences are drawn
 * (data/synthetic.c with mqar.c or markov.c): numbered, in three splits.
 */
#ifndef TENON_DATA_H
#define TENON_DATA_H

#include "types.h"

enum split { SPLIT_TRAIN, SPLIT_VAL, SPLIT_TEST };

enum {
	SYNTHETIC = IS_ENABLED(CONFIG_DATA_SYNTHETIC),
	MARKOV = IS_ENABLED(CONFIG_DATA_MARKOV),
	NR_SPLITS = SYNTHETIC ? 3 : 2,
};

/* ---- sources of tokens ---------------------------------------------------- */

/**
 * source_open() - open both splits; dies naming path and reason
 * @path: CONFIG_DATA_PATH or --data; ignored by the embedded corpus
 */
void source_open(const char *path);

/** source_tokens() - tokens of a split */
uint64_t source_tokens(enum split s);

/**
 * source_read() - token ids [pos, pos + n) of a split
 *
 * Dies where an id is not below VOCAB_SIZE, naming file and position.
 */
void source_read(enum split s, uint64_t pos, int n, int32_t *dst);

/** source_describe() - one line for the log: origin, split, counts, SHA-256 */
const char *source_describe(void);

/* ---- sources that draw ---------------------------------------------------- */

/**
 * draw_open() - what all sequences have in common
 *
 * Returns: their kind and its symbols in words, in static storage.
 */
const char *draw_open(void);

/**
 * draw_row() - one sequence
 * @seed: of the split
 * @j: its number
 * @tok: [T_MAX]
 * @target: [T_MAX], -1: not scored
 */
void draw_row(uint64_t seed, uint64_t j, int32_t *tok, int32_t *target);

/**
 * markov_floor() - what the chain itself reaches on a sequence: the least loss of any model
 * @tok: [T_MAX], @target: [T_MAX] as draw_row() left them
 *
 * Returns: -log of its probability of each target, summed, in nats.
 */
double markov_floor(const int32_t *tok, const int32_t *target);

/* ---- batches, of either --------------------------------------------------- */

/**
 * data_open() - source_open(), and refuse splits with fewer tokens than one batch
 */
void data_open(const char *path);

/** data_split() - the split that --split of @verb names; dies where there is none */
enum split data_split(const char *verb, const char *name);

/** data_unit() - what losses and perplexities are per: "byte" or "token" */
const char *data_unit(void);

/**
 * data_train_batch() - sequences of one micro-batch
 * @seed: run seed
 * @micro: number of the micro-batch since the start of training, over all ranks
 * @tok: [b][t]
 * @target: [b][t] the token behind each
 *
 * Non-overlapping windows of t tokens in an order permuted per epoch, shifted per
 * epoch. Sequence micro * b + row of the run is window (that mod the windows of an epoch).
 * Where sequences are drawn: DATA_TRAIN_SEQS of them in an order permuted per epoch; with
 * DATA_FRESH sequence micro * b + row.
 */
void data_train_batch(uint64_t seed, uint64_t micro, int b, int t, int32_t *tok, int32_t *target);

/**
 * data_bigram_loss() - what a model of byte pairs reaches: the baseline to beat
 *
 * Order-1 model counted on the training split, mean nats per token over every token of
 * the validation split but its first. P(y|x) = (n(x,y) + d(x) P(y)) / (n(x) + d(x)), d(x)
 * the number of different successors of x (Witten and Bell 1991), and
 * P(y) = (n(y) + 1/2) / (n + VOCAB_SIZE/2). After data_open().
 *
 * Returns: NAN where VOCAB_SIZE is above 4096, and where sequences are drawn.
 */
double data_bigram_loss(void);

/**
 * data_eval_batch() - batch @index of @count fixed batches of a split
 * @tok: [b][t]
 * @target: [b][t]
 *
 * Evenly spaced, independent of the seed; the same for every run. Drawn ones are numbers
 * index * b and on.
 *
 * Returns: its rows: @b, or fewer where a split of drawn sequences ends, 0 behind that.
 */
int data_eval_batch(enum split s, int index, int count, int b, int t, int32_t *tok,
		    int32_t *target);

#endif
