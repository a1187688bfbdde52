// SPDX-License-Identifier: MIT
/*
 * tenon generate: continue prompts through the decode caches. All prompts and samples
 * of a call are rows of batches; one alone is streamed to stdout.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "infer.h"
#include "options.h"
#include "util.h"

/* A vocabulary beyond 256 has rows that no byte ever trained. */
enum { SAMPLED = TEXT ? 256 : CONFIG_VOCAB_SIZE };

/**
 * struct request - what to generate
 * @prompts: to continue
 * @titled: each continuation has a line above it
 * @samples: continuations of each prompt
 * @max_tokens: new ones in each
 * @sampler: how
 */
struct request {
	struct prompts prompts;
	bool titled;
	int samples, max_tokens;
	struct sampler sampler;
};

/**
 * struct row - one continuation of a batch
 * @tok: [T_MAX] the prompt, then what was drawn
 * @n: tokens so far
 * @prompt: number of its prompt
 * @nr_prompt: tokens of that
 * @sample: number among the samples of its prompt
 * @done: it gets no more
 */
struct row {
	int32_t *tok;
	int n, prompt, nr_prompt, sample;
	bool done;
};

/* ---- output ---------------------------------------------------------------- */

static void emit(const int32_t *tok, int n)
{
	for (int i = 0; i < n; i++) {
		if (TEXT)
			putchar(tok[i]);
		else
			printf("%d ", tok[i]);
	}
	stdout_check();
}

static void print_title(const struct request *r, const struct row *row)
{
	if (!r->titled)
		return;
	printf("==> prompt %d", row->prompt + 1);
	if (r->samples > 1)
		printf(", sample %d", row->sample + 1);
	puts(" <==");
}

static void print_end(const struct request *r, const struct row *row)
{
	putchar('\n');
	fflush(stdout);
	if (row->n - row->nr_prompt < r->max_tokens)
		warn("generate: stopped after %d tokens: all CONFIG_BLOCK_SIZE=%d positions are used",
		     row->n - row->nr_prompt, T_MAX);
}

/* ---- batches --------------------------------------------------------------- */

static struct row row_open(const struct request *r, int number)
{
	const struct prompt *p = &r->prompts.list[number / r->samples];
	struct row row = { .tok = xcalloc(T_MAX, sizeof(*row.tok)), .n = p->n,
			   .nr_prompt = p->n, .prompt = number / r->samples,
			   .sample = number % r->samples };

	memcpy(row.tok, p->tok, p->n * sizeof(*row.tok));
	return row;
}

/* Prompts of different lengths side by side, short ones padded with token 0. */
static const acc_t *fill(struct decoder *d, const struct row *rows, int b)
{
	int32_t len[B_MAX], *tok;
	const acc_t *logits;
	int t = 0;

	for (int i = 0; i < b; i++) {
		len[i] = rows[i].n;
		t = MAX(t, rows[i].n);
	}
	tok = xmalloc(sizeof(*tok) * b * t);
	for (int i = 0; i < b; i++)
		memcpy(tok + (size_t)i * t, rows[i].tok, sizeof(*tok) * t);
	logits = decoder_fill(d, tok, len, b, t);
	free(tok);
	return logits;
}

/* The newest token of each; a row that is done repeats its last, which nobody looks at. */
static const acc_t *step(struct decoder *d, const struct row *rows, int b)
{
	int32_t tok[B_MAX], pos[B_MAX];

	for (int i = 0; i < b; i++) {
		pos[i] = rows[i].n - 1;
		tok[i] = rows[i].tok[pos[i]];
	}
	return decoder_step(d, tok, pos, b);
}

static bool finished(const struct request *r, const struct row *row)
{
	return row->n == T_MAX || row->n - row->nr_prompt >= r->max_tokens;
}

/* One more token for every row that is not done; how many rows go on. */
static int draw(const struct request *r, struct row *rows, int b, const acc_t *logits)
{
	int go_on = 0;

	for (int i = 0; i < b; i++) {
		struct row *row = &rows[i];

		if (row->done)
			continue;
		row->tok[row->n] = sample_token(&r->sampler, logits + (size_t)i * V, SAMPLED,
						row->sample, row->n - row->nr_prompt);
		row->n++;
		row->done = finished(r, row);
		go_on += !row->done;
	}
	return go_on;
}

/* @stream: what a row alone gets is written at once */
static void run_batch(struct decoder *d, const struct request *r, struct row *rows, int b,
		      bool stream)
{
	const acc_t *logits;
	int go_on = 0;

	for (int i = 0; i < b; i++) {
		rows[i].done = finished(r, &rows[i]);
		go_on += !rows[i].done;
	}
	if (!go_on)
		return;
	for (logits = fill(d, rows, b); ; logits = step(d, rows, b)) {
		go_on = draw(r, rows, b, logits);
		if (stream)
			emit(rows->tok + rows->n - 1, 1);
		if (!go_on)
			return;
	}
}

static void generate_batch(struct decoder *d, const struct request *r, int first, int b)
{
	struct row *rows = xcalloc(b, sizeof(*rows));
	bool stream = r->prompts.nr * r->samples == 1;

	for (int i = 0; i < b; i++)
		rows[i] = row_open(r, first + i);
	if (stream) {
		print_title(r, rows);
		emit(rows->tok, rows->n);
	}
	run_batch(d, r, rows, b, stream);
	for (int i = 0; i < b; i++) {
		if (!stream) {
			print_title(r, &rows[i]);
			emit(rows[i].tok, rows[i].n);
		}
		print_end(r, &rows[i]);
		free(rows[i].tok);
	}
	free(rows);
}

static void generate(const struct request *r, const char *checkpoint)
{
	static struct decoder d;
	int rows = r->prompts.nr * r->samples, b = MIN(rows, (int)B_MAX);

	decoder_open(&d, checkpoint, b);
	for (int first = 0; first < rows; first += b)
		generate_batch(&d, r, first, MIN(b, rows - first));
	decoder_close(&d);
}

int verb_generate(int argc, char **argv)
{
	const char *checkpoint = "runs/" CONFIG_RUN_NAME;
	const char *text = NULL, *ids = NULL, *file = NULL;
	int64_t max_tokens = CONFIG_GENERATION_MAX_TOKENS, top_k = CONFIG_GENERATION_TOP_K;
	int64_t seed = CONFIG_SEED, samples = 1, device = 0, threads = 0;
	double temperature = CONFIG_GENERATION_TEMPERATURE, top_p = 1;
	const struct opt opts[] = {
		{ "checkpoint", OPT_STRING, &checkpoint, 0, 0, "run folder or checkpoint folder" },
		{ "prompt", OPT_STRING, &text, 0, 0, "text to continue; default: a line feed" },
		{ "prompt-ids", OPT_STRING, &ids, 0, 0, "token ids to continue, \"1 2 3\"" },
		{ "prompts", OPT_STRING, &file, 0, 0,
		  "file with a prompt in each line, continued as batches" },
		{ "max-tokens", OPT_INT, &max_tokens, 1, 1e9, "new tokens in a sample" },
		{ "temperature", OPT_REAL, &temperature, 0, 1e6, "0: always the likeliest" },
		{ "top-k", OPT_INT, &top_k, 0, 1e9, "sample among the k likeliest, 0 = all" },
		{ "top-p", OPT_REAL, &top_p, 1e-9, 1, "sample among the likeliest of this mass" },
		{ "seed", OPT_INT, &seed, 0, INT64_MAX, "key of the random numbers" },
		{ "samples", OPT_INT, &samples, 1, 1e6, "continuations of each prompt" },
		{ "device", OPT_INT, &device, 0, 1024, "device number" },
		{ "threads", OPT_INT, &threads, 0, 4096, "cpu threads, 0 = OMP_NUM_THREADS or all" },
	};
	struct request r;

	options_parse("generate", "", opts, ARRAY_SIZE(opts), argc, argv);
	prompts_read(&r.prompts, text, ids, file);
	if (r.prompts.nr > INT32_MAX / samples)
		die("generate: %d prompts with %d samples each are too many; lower --samples",
		    r.prompts.nr, (int)samples);
	r.titled = file;
	r.samples = samples;
	r.max_tokens = max_tokens;
	r.sampler = (struct sampler){ .temperature = temperature, .top_p = top_p,
				      .top_k = top_k, .seed = seed };
	arch_init(device, threads);
	generate(&r, checkpoint);
	prompts_free(&r.prompts);
	return 0;
}
