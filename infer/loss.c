// SPDX-License-Identifier: MIT
/*
 * Loss through the decode caches, beside that of the forward over the same positions.
 */
#include <math.h>
#include <stdlib.h>

#include "arch.h"
#include "infer.h"
#include "util.h"

/**
 * struct evaluation - one batch after the other
 * @d: decoder of B_MAX sequences
 * @b: of them, rows of the batch
 * @tok: [B_MAX][T_MAX]
 * @target: [B_MAX][T_MAX], -1 before @from
 * @from: first position that counts
 * @scored: positions that did
 * @forward: sum of their losses
 * @decode: the same through the caches
 */
struct evaluation {
	struct decoder d;
	int b;
	int32_t tok[BT], target[BT];
	int from;
	uint64_t scored;
	double forward, decode;
};

/* -log softmax(logits)[target] over the real vocabulary, in double; 0: not scored */
static double token_loss(const acc_t *logits, int target)
{
	double max = logits[0], sum = 0;

	if (target < 0)
		return 0;
	for (int i = 1; i < CONFIG_VOCAB_SIZE; i++)
		max = MAX(max, logits[i]);
	for (int i = 0; i < CONFIG_VOCAB_SIZE; i++)
		sum += exp(logits[i] - max);
	return log(sum) + max - logits[target];
}

static void load(struct evaluation *e, enum split s, int index, int count)
{
	e->b = data_eval_batch(s, index, count, B_MAX, T_MAX, e->tok, e->target);
	for (int i = 0; i < e->b * T_MAX; i++) {
		if (i % T_MAX < e->from)
			e->target[i] = -1;
		e->scored += e->target[i] >= 0;
	}
}

static void forward(struct evaluation *e)
{
	struct model *m = &e->d.m;
	acc_t *loss = xmalloc(sizeof(*loss) * BT);

	model_load(m, &(struct batch){ e->b, T_MAX, e->tok, e->target });
	model_forward(m, false);
	arch_get(loss, model_row_loss(m), sizeof(*loss) * e->b * T_MAX);
	for (int i = 0; i < e->b * T_MAX; i++)
		e->forward += loss[i];
	free(loss);
}

/* The first tokens of every sequence as its prompt. */
static void fill(struct evaluation *e)
{
	int32_t *prompts = xmalloc(sizeof(*prompts) * B_MAX * e->from), len[B_MAX];

	for (int i = 0; i < e->b; i++) {
		len[i] = e->from;
		for (int j = 0; j < e->from; j++)
			prompts[(size_t)i * e->from + j] = e->tok[(size_t)i * T_MAX + j];
	}
	decoder_fill(&e->d, prompts, len, e->b, e->from);
	free(prompts);
}

static void decode(struct evaluation *e)
{
	int32_t now[B_MAX], pos[B_MAX];

	if (e->from)
		fill(e);
	for (int p = e->from; p < T_MAX; p++) {
		const acc_t *logits;

		for (int i = 0; i < e->b; i++) {
			now[i] = e->tok[(size_t)i * T_MAX + p];
			pos[i] = p;
		}
		logits = decoder_step(&e->d, now, pos, e->b);
		for (int i = 0; i < e->b; i++)
			e->decode += token_loss(logits + (size_t)i * V,
						e->target[(size_t)i * T_MAX + p]);
	}
}

struct decode_loss decode_loss(const char *checkpoint, enum split s, int count, int from)
{
	struct evaluation *e = xcalloc(1, sizeof(*e));
	struct decode_loss loss;
	double n;

	e->from = from;
	loss.step = decoder_open(&e->d, checkpoint, B_MAX);
	for (int i = 0; i < count; i++) {
		load(e, s, i, count);
		if (!e->b)
			break;
		forward(e);
		decode(e);
	}
	decoder_close(&e->d);
	n = MAX(e->scored, (uint64_t)1);
	loss.forward = e->forward / n;
	loss.decode = e->decode / n;
	free(e);
	return loss;
}
