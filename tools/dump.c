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
#include "model.h"
#include "options.h"
#include "safetensors.h"
#include "util.h"

/**
 * struct dump - one bundle in the making
 * @m: model in PHASE_TRAIN
 * @file: the tokens as they were given: [b][t + 1], or with @apart inputs [b][t] and then
 *	targets [b][t]
 * @apart: which of the two
 * @b: sequences
 * @t: positions
 * @path: final name
 * @st: the writer
 */
struct dump {
	struct model m;
	int32_t *file;
	bool apart;
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

/* Raw little-endian int32, @n of them. */
static int32_t *read_numbers(const char *path, size_t n, const char *what)
{
	size_t size;
	uint8_t *raw = file_read(path, &size);
	int32_t *x;

	if (!raw)
		die("dump: cannot read %s: %s", path, file_error(errno));
	if (size != n * 4)
		die("dump: %s has %zu bytes; %s are %zu (little-endian int32)", path, size, what,
		    n * 4);
	x = xcalloc(n, sizeof(*x));
	for (size_t i = 0; i < n; i++) {
		const uint8_t *p = raw + 4 * i;

		x[i] = (int32_t)(p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24);
	}
	free(raw);
	return x;
}

/* Numbers [from, to) of a file must be tokens, or targets, which may be -1. */
static void check_tokens(const char *path, const int32_t *x, size_t from, size_t to, int least)
{
	for (size_t i = from; i < to; i++)
		if (x[i] < least || x[i] >= CONFIG_VOCAB_SIZE)
			die("dump: %s: token %zu is %d, not %sbelow CONFIG_VOCAB_SIZE=%d", path, i,
			    x[i], least < 0 ? "-1 or " : "", CONFIG_VOCAB_SIZE);
}

static void read_file(struct dump *d, const char *path)
{
	size_t n = (size_t)d->b * d->t, all = d->apart ? 2 * n : n + d->b;
	char *what = xasprintf(d->apart ? "%d sequences of %d inputs and as many targets" :
					  "%d sequences of %d + 1 tokens", d->b, d->t);

	d->file = read_numbers(path, all, what);
	check_tokens(path, d->file, 0, d->apart ? n : all, 0);
	check_tokens(path, d->file, d->apart ? n : all, all, -1);
	free(what);
}

/* The batch goes up. */
static void load(struct dump *d)
{
	size_t n = (size_t)d->b * d->t;
	int32_t *tok = d->file, *target = d->file + n;

	if (!d->apart) {
		tok = xmalloc(2 * n * sizeof(*tok));
		target = tok + n;
		for (int i = 0; i < d->b; i++) {
			const int32_t *row = d->file + (size_t)i * (d->t + 1);

			memcpy(tok + (size_t)i * d->t, row, d->t * sizeof(*row));
			memcpy(target + (size_t)i * d->t, row + 1, d->t * sizeof(*row));
		}
	}
	model_load(&d->m, &(struct batch){ d->b, d->t, tok, target });
	if (!d->apart)
		free(tok);
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
		die("dump: needs %zu MiB of memory, %zu MiB are free; lower CONFIG_BATCH_SIZE or "
		    "CONFIG_BLOCK_SIZE", bytes >> 20, arch_memory() >> 20);
	arena = arch_alloc(bytes);
	model_place(m, arena, PHASE_TRAIN, 0, leaf, &extra);
	m->dw = extra;
}

/* ---- writing --------------------------------------------------------------- */

static void __attribute__((noreturn)) fail(const struct dump *d, int error)
{
	die("dump: cannot write %s: %s; make room or give another --out", d->path,
	    file_error(-error));
}

static void check(const struct dump *d, int error)
{
	if (!error)
		return;
	st_finish(d->st, NULL, NULL);	/* removes what was written */
	fail(d, error);
}

static void declare(const struct dump *d, const struct tensor_set *param,
		    const struct tensor_set *state, const struct tensor_set *grad)
{
	const int64_t bt[] = { d->b, d->t }, whole[] = { d->b, d->t + 1 }, one = 1;

	st_meta(d->st, "config", config_text());
	st_meta(d->st, "build", build_text());
	if (d->apart) {
		st_declare(d->st, "inputs", "I32", 2, bt);
		st_declare(d->st, "targets", "I32", 2, bt);
	} else {
		st_declare(d->st, "tokens", "I32", 2, whole);
	}
	tensors_declare(d->st, &d->m, param);
	tensors_declare(d->st, &d->m, state);
	st_declare(d->st, "logits", REAL_NAME, 3, (int64_t[]){ d->b, d->t, V });
	st_declare(d->st, "loss", REAL_NAME, 1, &one);
	if (model_has_aux(&d->m))
		st_declare(d->st, "loss_aux", REAL_NAME, 1, &one);
	tensors_declare(d->st, &d->m, grad);
}

static void write_logits(struct dump *d)
{
	acc_t *host = xmalloc(sizeof(*host) * LOGIT_ROWS * V);
	int rows = d->b * d->t;

	for (int row = 0; row < rows; row += LOGIT_ROWS) {
		int n = MIN((int)LOGIT_ROWS, rows - row);

		arch_get(host, model_logits(&d->m, row, n), sizeof(*host) * n * V);
		check(d, st_data(d->st, host, sizeof(*host) * n * V));
	}
	free(host);
}

static void write_losses(const struct dump *d, double loss)
{
	double aux;
	grad_t x[2] = { loss };

	arch_get(&aux, d->m.aux, sizeof(aux));
	x[1] = aux;
	check(d, st_data(d->st, x, sizeof(*x) * (model_has_aux(&d->m) ? 2 : 1)));
}

static void write_bundle(struct dump *d)
{
	const struct tensor_set param = { .prefix = "param.", .which = TENSORS_TRAINED,
					  .weights = true };
	const struct tensor_set state = { .prefix = "state.", .which = TENSORS_FROZEN,
					  .weights = true };
	const struct tensor_set grad = { .prefix = "grad.", .which = TENSORS_TRAINED,
					 .buf = d->m.dw };
	size_t numbers = (size_t)d->b * (d->apart ? 2 * d->t : d->t + 1);
	double loss = model_loss(&d->m);
	char hex[65], *path;
	uint64_t size;
	int error;

	d->st = st_create(d->path);
	if (!d->st)
		fail(d, -errno);
	declare(d, &param, &state, &grad);
	check(d, st_data(d->st, d->file, sizeof(*d->file) * numbers));
	check(d, tensors_stream(d->st, &d->m, &param));
	check(d, tensors_stream(d->st, &d->m, &state));
	write_logits(d);
	write_losses(d, loss);
	check(d, tensors_stream(d->st, &d->m, &grad));
	error = st_finish(d->st, &size, hex);
	if (error)
		fail(d, error);
	path = text_plain(d->path);
	printf("%s: loss %.6f, %llu bytes, sha256 %s\n", path, loss, (unsigned long long)size, hex);
	free(path);
}

int verb_dump(int argc, char **argv)
{
	const char *tokens = NULL, *targets = NULL, *out = NULL, *checkpoint = NULL;
	int64_t seed = -1, batch = B_MAX, length = T_MAX, device = 0, threads = 0;
	const struct opt opts[] = {
		{ "tokens", OPT_STRING, &tokens, 0, 0, "batch x (length + 1) raw int32 tokens" },
		{ "targets", OPT_STRING, &targets, 0, 0,
		  "or: batch x length inputs, then as many targets, -1 not scored" },
		{ "out", OPT_STRING, &out, 0, 0, "file to write" },
		{ "init", OPT_INT, &seed, 0, INT64_MAX, "initial weights of this seed" },
		{ "checkpoint", OPT_STRING, &checkpoint, 0, 0, "or: weights of a checkpoint" },
		{ "batch", OPT_INT, &batch, 1, INT32_MAX, "sequences" },
		{ "length", OPT_INT, &length, 1, INT32_MAX, "positions" },
		{ "device", OPT_INT, &device, 0, 1024, "device number" },
		{ "threads", OPT_INT, &threads, 0, 4096, "cpu threads, 0 = OMP_NUM_THREADS or all" },
	};
	static struct dump d;

	options_parse("dump", "", opts, ARRAY_SIZE(opts), argc, argv);
	if (!tokens == !targets || !out)
		die("dump: --tokens FILE or --targets FILE, and --out BUNDLE.safetensors are needed");
	if ((seed >= 0) == (checkpoint != NULL))
		die("dump: give either --init SEED or --checkpoint DIR");
	check_capacity(batch, length);
	d.b = batch;
	d.t = length;
	d.path = out;
	d.apart = targets != NULL;
	read_file(&d, d.apart ? targets : tokens);
	arch_init(device, threads);
	place(&d.m);
	if (checkpoint)
		ckpt_load_weights(checkpoint, &d.m);
	else
		model_init_params(&d.m, NULL, seed);
	load(&d);
	model_forward(&d.m, true);
	model_backward(&d.m, NULL, NULL);
	write_bundle(&d);
	free(d.file);
	return 0;
}
