// SPDX-License-Identifier: MIT
/*
 * tenon generate: continue a prompt, one token at a time through the decode
 * caches, streamed to stdout.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "infer.h"
#include "options.h"
#include "util.h"

enum {
	/* Bytes are tokens; without a tokenizer ids are read and written as numbers. */
	TEXT = IS_ENABLED(CONFIG_TOKENIZER_BYTES),
	/* A vocabulary beyond 256 has rows that no byte ever trained. */
	SAMPLED = TEXT ? 256 : CONFIG_VOCAB_SIZE,
};

/**
 * struct request - what to generate
 * @prompt: [nr_prompt] token ids
 * @nr_prompt: at least 1, at most T_MAX
 * @max_tokens: new ones in each sample
 * @samples: continuations of the prompt
 * @sampler: how
 */
struct request {
	int32_t *prompt;
	int nr_prompt, max_tokens, samples;
	struct sampler sampler;
};

static void emit(int token)
{
	if (TEXT)
		putchar(token);
	else
		printf("%d ", token);
	fflush(stdout);
	if (ferror(stdout))
		die("generate: cannot write to stdout: %s", strerror(errno));
}

static void prompt_text(struct request *r, const char *text)
{
	if (!TEXT)
		die("generate: this binary has no tokenizer; give token ids with --prompt-ids \"1 2 3\"");
	r->nr_prompt = strlen(text);
	r->prompt = xcalloc(r->nr_prompt + 1, sizeof(*r->prompt));
	for (int i = 0; i < r->nr_prompt; i++)
		r->prompt[i] = (unsigned char)text[i];
}

static void prompt_ids(struct request *r, const char *text)
{
	r->prompt = xcalloc(strlen(text) / 2 + 1, sizeof(*r->prompt));
	for (;;) {
		char *end;
		long id;

		text += strspn(text, " ,\t\n");
		if (!*text)
			return;
		id = strtol(text, &end, 10);
		if (end == text || (*end && !strchr(" ,\t\n", *end)))
			die("generate: --prompt-ids has \"%s\" where a number should stand", text);
		if (id < 0 || id >= CONFIG_VOCAB_SIZE)
			die("generate: --prompt-ids: token %ld is not below CONFIG_VOCAB_SIZE=%d",
			    id, CONFIG_VOCAB_SIZE);
		r->prompt[r->nr_prompt++] = id;
		text = end;
	}
}

static void check_prompt(const struct request *r)
{
	if (!r->nr_prompt)
		die("generate: the prompt is empty; give at least one token");
	if (r->nr_prompt > T_MAX)
		die("generate: the prompt has %d tokens, the model CONFIG_BLOCK_SIZE=%d positions; shorten it",
		    r->nr_prompt, T_MAX);
}

/* One continuation; the prompt is written first. */
static void generate_one(struct decoder *d, const struct request *r, int sample)
{
	act_t *logits = xmalloc(V * sizeof(*logits));
	int n = 0;

	decoder_rewind(d);
	for (int i = 0; i < r->nr_prompt; i++) {
		emit(r->prompt[i]);
		decoder_feed(d, r->prompt[i], i == r->nr_prompt - 1 ? logits : NULL);
	}
	while (n < r->max_tokens && d->pos < T_MAX) {
		int token = sample_token(&r->sampler, logits, SAMPLED, sample, n++);

		emit(token);
		decoder_feed(d, token, logits);
	}
	putchar('\n');
	fflush(stdout);
	if (n < r->max_tokens)
		warn("generate: stopped after %d tokens: all CONFIG_BLOCK_SIZE=%d positions are used",
		     n, T_MAX);
	free(logits);
}

int verb_generate(int argc, char **argv)
{
	const char *checkpoint = "runs/" CONFIG_RUN_NAME, *text = NULL, *ids = NULL;
	int64_t max_tokens = CONFIG_GENERATION_MAX_TOKENS, top_k = CONFIG_GENERATION_TOP_K;
	int64_t seed = CONFIG_SEED, samples = 1, device = 0, threads = 0;
	double temperature = CONFIG_GENERATION_TEMPERATURE, top_p = 1;
	const struct opt opts[] = {
		{ "checkpoint", OPT_STRING, &checkpoint, 0, 0, "run folder or step folder" },
		{ "prompt", OPT_STRING, &text, 0, 0, "text to continue; default: a line feed" },
		{ "prompt-ids", OPT_STRING, &ids, 0, 0, "token ids to continue, \"1 2 3\"" },
		{ "max-tokens", OPT_INT, &max_tokens, 1, 1e9, "new tokens in a sample" },
		{ "temperature", OPT_REAL, &temperature, 0, 1e6, "0: always the likeliest" },
		{ "top-k", OPT_INT, &top_k, 0, 1e9, "sample among the k likeliest, 0 = all" },
		{ "top-p", OPT_REAL, &top_p, 1e-9, 1, "sample among the likeliest of this mass" },
		{ "seed", OPT_INT, &seed, 0, INT64_MAX, "key of the random numbers" },
		{ "samples", OPT_INT, &samples, 1, 1e6, "continuations of the prompt" },
		{ "device", OPT_INT, &device, 0, 1024, "device number" },
		{ "threads", OPT_INT, &threads, 0, 4096, "cpu threads, 0 = all" },
	};
	struct request r = { .nr_prompt = 0 };
	static struct decoder d;

	options_parse("generate", "", opts, ARRAY_SIZE(opts), argc, argv);
	if (text && ids)
		die("generate: --prompt and --prompt-ids exclude each other");
	if (!text && !ids && !TEXT)
		die("generate: this binary has no tokenizer; give --prompt-ids \"1 2 3\"");
	if (ids)
		prompt_ids(&r, ids);
	else
		prompt_text(&r, text ? text : "\n");
	check_prompt(&r);
	r.max_tokens = max_tokens;
	r.samples = samples;
	r.sampler = (struct sampler){ .temperature = temperature, .top_p = top_p,
				      .top_k = top_k, .seed = seed };
	arch_init(device, threads);
	decoder_open(&d, checkpoint);
	for (int i = 0; i < r.samples; i++)
		generate_one(&d, &r, i);
	decoder_close(&d);
	free(r.prompt);
	return 0;
}
