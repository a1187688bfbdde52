/* SPDX-License-Identifier: MIT */
/*
 * Inside infer/: the pieces of text generation.
 */
#ifndef TENON_INFER_H
#define TENON_INFER_H

#include "model.h"

/* ---- cache.c -------------------------------------------------------------- */

/**
 * struct decoder - one sequence on its way through the decode caches
 * @m: model in PHASE_DECODE
 * @arena: its memory
 * @bytes: size of the arena
 * @pos: tokens fed so far
 */
struct decoder {
	struct model m;
	void *arena;
	size_t bytes;
	int pos;
};

/**
 * decoder_open() - an arena for one sequence, and the weights of a checkpoint
 *
 * Dies where the configuration cannot decode, the plan does not fit or the
 * checkpoint cannot be used.
 */
void decoder_open(struct decoder *d, const char *checkpoint);

/** decoder_rewind() - start a new sequence; the caches are overwritten from position 0 on */
void decoder_rewind(struct decoder *d);

/**
 * decoder_feed() - one token at the next position, which must be below T_MAX
 * @logits: gets [V] on the host, padded columns minus infinity; may be NULL
 */
void decoder_feed(struct decoder *d, int32_t token, act_t *logits);

void decoder_close(struct decoder *d);

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
int sample_token(const struct sampler *s, const act_t *logits, int n, uint64_t stream,
		 uint64_t index);

#endif
