// SPDX-License-Identifier: MIT
/*
 * tenon compress: what of the states of linear RNNs is needed, what each way to keep less of
 * them costs, and for some ways a smaller checkpoint.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "compress.h"
#include "dist.h"
#include "options.h"
#include "util.h"

struct flags {
	const char *checkpoint, *dims, *out, *absorb, *checkpoint_out, *data;
	int64_t samples, dim, device, threads;
};

static void refuse_build(void)
{
	if (!IS_ENABLED(CONFIG_HAVE_LINATTN))
		die("compress: no sub-layer of CONFIG_BLOCK=\"" CONFIG_BLOCK "\" has a linear state; "
		    "gla, mfa_gla and mamba2 have one");
	if (!IS_ENABLED(CONFIG_ARCH_CPU))
		die("compress: on a cpu only; build with CONFIG_ARCH_CPU=y, which reads the same "
		    "checkpoints");
	if (!IS_ENABLED(CONFIG_COMPRESS))
		die("compress: this binary was built without LAPACK; run sh scripts/setup.sh compress "
		    "(libopenblas-dev or liblapack-dev), then make clean build");
}

static void read_dims(struct compress *c, const char *text)
{
	const char *at = text;
	char *end;

	do {
		long d = strtol(at, &end, 10);

		if (end == at || (*end && *end != ',') || d < 1 || d > INT32_MAX)
			die("compress: --dims %s: widths from 1 on with commas between them, as in "
			    "8,16,32", text);
		c->dims = xrealloc(c->dims, (c->nr_dims + 1) * sizeof(*c->dims));
		c->dims[c->nr_dims++] = d;
		c->widest = MAX(c->widest, (int)d);
		at = end + 1;
	} while (*end);
}

static void check(const struct flags *f)
{
	if (!f->checkpoint)
		die("compress: --checkpoint DIR is needed");
	if (!f->dims != !f->out || !f->absorb != !f->checkpoint_out || !f->absorb != !f->dim)
		die("compress: --dims D,D,... goes with --out FILE.json, and --absorb WAY with --dim D "
		    "and --checkpoint-out DIR");
	if (!f->dims && !f->absorb)
		die("compress: give --dims D,D,... and --out FILE.json to measure, or --absorb WAY, "
		    "--dim D and --checkpoint-out DIR to write a smaller checkpoint");
}

static struct file_writer *create(const char *path)
{
	struct file_writer *f = file_create(path);

	if (!f)
		die("compress: cannot write %s: %s; give another --out", path, file_error(errno));
	return f;
}

static void measure(struct compress *c, const struct flags *f, struct file_writer *out)
{
	struct measure s;

	measure_all(&s, c);
	write_json(&s, f->checkpoint, out, f->out);
}

/* What was typed is looked at before anything that takes time. */
static void run(struct compress *c, const struct flags *f)
{
	struct file_writer *out = NULL;
	enum row row = ROW_VALUE;

	if (f->dims)
		read_dims(c, f->dims);
	if (f->absorb)
		row = absorb_check(f->absorb);
	c->widest = MAX(c->widest, (int)f->dim);
	c->samples = f->samples;
	c->fit = SYNTHETIC ? SPLIT_VAL : SPLIT_TRAIN;
	c->test = SYNTHETIC ? SPLIT_TEST : SPLIT_VAL;
	free(ckpt_find(f->checkpoint));
	data_open(f->data);
	dist_init();
	arch_init(f->device, f->threads);
	eval_place(&c->m);
	c->step = ckpt_load_weights(f->checkpoint, &c->m);
	if (f->out)
		out = create(f->out);
	fit_sites(c);
	if (f->absorb)
		absorb_check_sites(c, row, f->dim);
	fit_bases(c, f->dims != NULL);
	printf("step %" PRId64 ": learned on %" PRId64 " sequences of %s\n", c->step,
	       c->full_fit.rows, split_name(c->fit));
	if (f->absorb)
		absorb_write(c, row, f->dim, f->checkpoint, f->checkpoint_out);
	if (f->dims)
		measure(c, f, out);
}

int verb_compress(int argc, char **argv)
{
	struct flags f = { .data = CONFIG_DATA_PATH, .samples = CONFIG_EVAL_SAMPLES };
	const struct opt opts[] = {
		{ "checkpoint", OPT_STRING, &f.checkpoint, 0, 0,
		  "checkpoint folder, or run folder: its best" },
		{ "dims", OPT_STRING, &f.dims, 0, 0, "widths of latents, as in 8,16,32,64" },
		{ "out", OPT_STRING, &f.out, 0, 0, "JSON file to write" },
		{ "samples", OPT_INT, &f.samples, 1, 1e9, "batches of each split, default EVAL_SAMPLES" },
		{ "absorb", OPT_STRING, &f.absorb, 0, 0,
		  "value, scalar or select: write a smaller gla checkpoint" },
		{ "dim", OPT_INT, &f.dim, 1, INT32_MAX, "its width" },
		{ "checkpoint-out", OPT_STRING, &f.checkpoint_out, 0, 0, "its folder" },
		{ "data", OPT_STRING, &f.data, 0, 0, "data path, default DATA_PATH" },
		{ "device", OPT_INT, &f.device, 0, 1023, "device number" },
		{ "threads", OPT_INT, &f.threads, 0, 4096, "cpu threads, 0 = OMP_NUM_THREADS or all" },
	};
	static struct compress c;

	options_parse("compress", "", opts, ARRAY_SIZE(opts), argc, argv);
	refuse_build();
	check(&f);
	if (IS_ENABLED(CONFIG_COMPRESS))
		run(&c, &f);
	return 0;
}
