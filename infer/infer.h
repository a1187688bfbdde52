/* SPDX-License-Identifier: MIT */
/*
 * Inside infer/: the pieces of text generation; decode_loss() is for the verb eval,
 * decode_bench() for bench.
 */
#ifndef TENON_INFER_H
#define TENON_INFER_H

#include "data.h"
#include "model.h"

enum {
	/* Bytes are tokens; without a tokenizer ids are read and written as numbers. */
	TEXT = IS_ENABLED(CONFIG_TOKENIZER_BYTES),
};

/* ---- cache.c -------------------------------------------------------------- */

/**
 * struct decoder - sequences on their way through the decode caches
 * @m: model in PHASE_DECODE
 * @arena: its memory
 * @bytes: size of the arena
 * @logits: host [sequences][V] of the last call, padded columns minus infinity
 */
struct decoder {
	struct model m;
	void *arena;
	size_t bytes;
	acc_t *logits;
};

/**
 * decoder_place() - an arena for @sequences at a time, weights not yet set
 * @d: result
 * @sequences: at most B_MAX
 *
 * Dies where the configuration cannot decode or the plan does not fit.
 */
void decoder_place(struct decoder *d, int sequences);

/**
 * decoder_open() - an arena for @sequences at a time, and the weights of a checkpoint
 * @d: result
 * @checkpoint: run folder or checkpoint folder
 * @sequences: at most B_MAX
 *
 * Dies as decoder_place() does, and where the checkpoint cannot be used.
 *
 * Returns: the step of the checkpoint.
 */
int64_t decoder_open(struct decoder *d, const char *checkpoint, int sequences);

/**
 * decoder_fill() - prompts start afresh in sequences 0..b - 1
 * @tok: [b][t]; behind len[i] anything below VOCAB_SIZE
 * @len: [b] tokens of each, 1..t
 *
 * Returns: host logits [b][V] behind each prompt.
 */
const acc_t *decoder_fill(struct decoder *d, const int32_t *tok, const int32_t *len, int b, int t);

/**
 * decoder_step() - one token each for sequences 0..b - 1
 * @tok: [b]
 * @pos: [b] their positions; the cache of i holds 0..pos[i] - 1
 *
 * Returns: host logits [b][V].
 */
const acc_t *decoder_step(struct decoder *d, const int32_t *tok, const int32_t *pos, int b);

void decoder_close(struct decoder *d);

/* ---- loss.c --------------------------------------------------------------- */

/**
 * struct decode_loss - mean loss of the scored positions from one on, in two ways
 * @step: of the checkpoint
 * @forward: from the logits of a forward
 * @decode: from logits through the caches; equal but for rounding
 */
struct decode_loss {
	int64_t step;
	double forward, decode;
};

/**
 * decode_loss() - what a checkpoint loses where it generates
 * @checkpoint: run folder or checkpoint folder
 * @s: split
 * @count: fixed batches of it, as data_eval_batch() cuts them; after data_open()
 * @from: 0..T_MAX - 1: so many tokens fill the caches as a prompt, each further one is
 *	a step with the data's token
 */
struct decode_loss decode_loss(const char *checkpoint, enum split s, int count, int from);

/* ---- bench.c -------------------------------------------------------------- */

/**
 * struct decode_bench - what to time
 * @sequences: 1..B_MAX
 * @length: tokens in the cache of each, 1..T_MAX - 1
 * @steps: that are timed
 * @warmup: before them
 * @seed: of weights and tokens
 * @json: for scripts
 */
struct decode_bench {
	int sequences, length, steps, warmup;
	uint64_t seed;
	bool json;
};

/** decode_bench() - time decode steps and print; after arch_init() */
void decode_bench(const struct decode_bench *x);

/* ---- prompt.c ------------------------------------------------------------- */

/**
 * struct prompt - tokens to continue
 * @tok: [n]
 * @n: 1..T_MAX
 */
struct prompt {
	int32_t *tok;
	int n;
};

/**
 * struct prompts - what is given to generate
 * @list: [nr]
 * @nr: at least 1
 */
struct prompts {
	struct prompt *list;
	int nr;
};

/**
 * prompts_read() - from the command line; one at most is not NULL
 * @text: text of one prompt; all NULL: a line feed
 * @ids: "1 2 3"
 * @file: one prompt a line, text or (without a tokenizer) ids
 *
 * Dies where a prompt is empty, too long or not in the vocabulary.
 */
void prompts_read(struct prompts *p, const char *text, const char *ids, const char *file);

void prompts_free(struct prompts *p);

/* ---- sample.c ------------------------------------------------------------- */

/**
 * struct sampler - how the next token is drawn
 * @temperature: logits are divided by it; 0: the likeliest token
 * @top_k: only the k likeliest, 0 = all
 * @top_p: of these, the fewest whose probabilities reach p; 1 = all
 * @seed: key of the random numbers
 */
struct sampler {
	double temperature, top_p;
	int top_k;
	uint64_t seed;
};

/**
 * sample_token() - draw from softmax(logits / temperature), in double
 * @logits: [n]
 * @stream: number of the sample
 * @index: number of the token in it
 *
 * A pure function of its arguments. Equal logits: the smaller id first. Dies where
 * a logit is not finite.
 */
int sample_token(const struct sampler *s, const acc_t *logits, int n, uint64_t stream,
		 uint64_t index);

#endif
