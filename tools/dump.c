// SPDX-License-Identifier: MIT
/*
 * tenon dump: one batch with parameters, logits, loss and every gradient in one
 * safetensors file, so that another framework can check this one.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "checkpoint.h"
#include "options.h"
#include "safetensors.h"
#include "util.h"

/**
 * struct dump - one bundle in the making
 * @m: model in PHASE_TRAIN
 * @tok: [b][t + 1]
 * @b: sequences
 * @t: positions
 * @path: final name
 * @st: the writer
 */
struct dump {
	struct model m;
	int32_t *tok;
	int b, t;
	const char *path;
	struct st_writer *st;
};

static void check_capacity(int b, int t)
{
	if (b > B_MAX)
		die("dump: --batch %d is more than CONFIG_BATCH_SIZE=%d", b, B_MAX);
	if (t > T_MAX)
		die("dump: --length %d is more than CONFIG_BLOCK_SIZE=%d", t, T_MAX);
}

/* Raw little-endian int32, b * (t + 1) of them. */
static int32_t *read_tokens(const char *path, int b, int t)
{
	size_t want = (size_t)b * (t + 1), size;
	uint8_t *raw = file_read(path, &size);
	int32_t *tok;

	if (!raw)
		die("dump: cannot read %s: %s", path, strerror(errno));
	if (size != want * 4)
		die("dump: %s has %zu bytes; %d sequences of %d + 1 tokens are %zu (little-endian int32)",
		    path, size, b, t, want * 4);
	tok = xcalloc(want, sizeof(*tok));
	for (size_t i = 0; i < want; i++) {
		const uint8_t *p = raw + 4 * i;

		tok[i] = (int32_t)(p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24);
		if (tok[i] < 0 || tok[i] >= CONFIG_VOCAB_SIZE)
			die("dump: %s: token %zu is %d, not below CONFIG_VOCAB_SIZE=%d", path, i,
			    tok[i], CONFIG_VOCAB_SIZE);
	}
	free(raw);
	return tok;
}

/* A training arena with one gradient leaf and no optimizer. */
static void place(struct model *m)
{
	size_t leaf, bytes;
	void *arena, *extra;

	model_layout(m);
	leaf = m->param_elems * sizeof(grad_t);
	bytes = model_place(m, NULL, PHASE_TRAIN, 0, leaf, NULL);
	if (bytes > arch_memory())
		die("dump: needs %zu MiB of memory, %zu MiB are free; lower CONFIG_BATCH_SIZE or CONFIG_BLOCK_SIZE",
		    bytes >> 20, arch_memory() >> 20);
	arena = arch_alloc(bytes);
	model_place(m, arena, PHASE_TRAIN, 0, leaf, &extra);
	m->dw = extra;
}

/* ---- writing --------------------------------------------------------------- */

static void __attribute__((noreturn)) fail(const struct dump *d, int error)
{
	die("dump: cannot write %s: %s; make room or give another --out", d->path,
	    strerror(-error));
}

static void write_data(const struct dump *d, const void *buf, size_t bytes)
{
	int error = st_data(d->st, buf, bytes);

	if (error) {
		st_finish(d->st, NULL, NULL);	/* removes what was written */
		fail(d, error);
	}
}

static void declare_entries(const struct dump *d, const char *prefix)
{
	for (int i = 0; i < d->m.nr_entries; i++) {
		const struct param_entry *e = &d->m.entries[i];
		char *name = xasprintf("%s%s", prefix, e->name);
		int64_t shape[ARRAY_SIZE(e->p->dims)];

		for (int j = 0; j < e->p->ndim; j++)
			shape[j] = e->p->dims[j];
		st_declare(d->st, name, REAL_NAME, e->p->ndim, shape);
		free(name);
	}
}

static void declare(const struct dump *d)
{
	st_meta(d->st, "config", config_text());
	st_meta(d->st, "build", build_text());
	st_declare(d->st, "tokens", "I32", 2, (int64_t[]){ d->b, d->t + 1 });
	declare_entries(d, "param.");
	st_declare(d->st, "logits", REAL_NAME, 3, (int64_t[]){ d->b, d->t, V });
	st_declare(d->st, "loss", REAL_NAME, 1, (int64_t[]){ 1 });
	declare_entries(d, "grad.");
}

/* The tensors of a flat device buffer, without its padding. */
static void write_entries(const struct dump *d, const grad_t *flat)
{
	for (int i = 0; i < d->m.nr_entries; i++) {
		const struct param_entry *e = &d->m.entries[i];
		grad_t *host = xmalloc(e->numel * sizeof(*host));

		arch_get(host, flat + e->offset, e->numel * sizeof(*host));
		write_data(d, host, e->numel * sizeof(*host));
		free(host);
	}
}

static void write_logits(struct dump *d)
{
	act_t *host = xmalloc(sizeof(*host) * HEAD_ROWS * V);
	int rows = d->b * d->t;

	for (int row = 0; row < rows; row += HEAD_ROWS) {
		int n = MIN(HEAD_ROWS, rows - row);

		arch_get(host, model_logits(&d->m, row, n), sizeof(*host) * n * V);
		write_data(d, host, sizeof(*host) * n * V);
	}
	free(host);
}

static void write_bundle(struct dump *d)
{
	act_t loss = model_loss(&d->m);
	uint64_t size;
	char hex[65];
	int error;

	d->st = st_create(d->path);
	if (!d->st)
		fail(d, -errno);
	declare(d);
	write_data(d, d->tok, sizeof(*d->tok) * d->b * (d->t + 1));
	write_entries(d, d->m.w);
	write_logits(d);
	write_data(d, &loss, sizeof(loss));
	write_entries(d, d->m.dw);
	error = st_finish(d->st, &size, hex);
	if (error)
		fail(d, error);
	printf("%s: loss %.6f, %llu bytes, sha256 %s\n", d->path, (double)loss,
	       (unsigned long long)size, hex);
}

int verb_dump(int argc, char **argv)
{
	const char *tokens = NULL, *out = NULL, *checkpoint = NULL;
	int64_t seed = -1, batch = B_MAX, length = T_MAX, device = 0, threads = 0;
	const struct opt opts[] = {
		{ "tokens", OPT_STRING, &tokens, 0, 0, "batch x (length + 1) raw int32 tokens" },
		{ "out", OPT_STRING, &out, 0, 0, "file to write" },
		{ "init", OPT_INT, &seed, 0, INT64_MAX, "initial weights of this seed" },
		{ "checkpoint", OPT_STRING, &checkpoint, 0, 0, "or: weights of a checkpoint" },
		{ "batch", OPT_INT, &batch, 1, INT32_MAX, "sequences" },
		{ "length", OPT_INT, &length, 1, INT32_MAX, "positions" },
		{ "device", OPT_INT, &device, 0, 1024, "device number" },
		{ "threads", OPT_INT, &threads, 0, 4096, "cpu threads, 0 = all" },
	};
	static struct dump d;

	options_parse("dump", "", opts, ARRAY_SIZE(opts), argc, argv);
	if (!tokens || !out)
		die("dump: --tokens FILE and --out BUNDLE.safetensors are needed");
	if ((seed >= 0) == (checkpoint != NULL))
		die("dump: give either --init SEED or --checkpoint DIR");
	check_capacity(batch, length);
	d.b = batch;
	d.t = length;
	d.path = out;
	d.tok = read_tokens(tokens, d.b, d.t);
	arch_init(device, threads);
	place(&d.m);
	if (checkpoint)
		ckpt_load_weights(checkpoint, &d.m);
	else
		model_init_params(&d.m, seed);
	model_forward(&d.m, d.tok, d.b, d.t, true);
	model_backward(&d.m, d.b, d.t);
	write_bundle(&d);
	free(d.tok);
	return 0;
}
