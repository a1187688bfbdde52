// SPDX-License-Identifier: MIT
/*
 * Mean loss over fixed batches of a split, during training and as the verb eval.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "dist.h"
#include "options.h"
#include "train.h"
#include "../infer/infer.h"
#include "util.h"

static int64_t count_scored(const int32_t *target)
{
	int64_t n = 0;

	for (int i = 0; i < BT; i++)
		n += target[i] >= 0;
	return n;
}

bool eval_loss(struct model *m, enum split s, int count, double *loss)
{
	int32_t *tok = xmalloc(sizeof(*tok) * BT), *target = xmalloc(sizeof(*target) * BT);
	const struct batch x = { .b = B_MAX, .t = T_MAX, .tok = tok, .target = target };
	int64_t scored = 0;
	double sum = 0;
	int i;

	for (i = 0; i < count && !stop_agreed(); i++) {
		int64_t n;

		data_eval_batch(s, i, count, B_MAX, T_MAX, tok, target);
		n = count_scored(target);
		model_load(m, &x);
		model_forward(m, false);
		sum += model_loss(m) * n;
		scored += n;
	}
	*loss = sum / MAX(scored, 1);
	free(tok);
	free(target);
	return i == count;
}

static enum split split_named(const char *name)
{
	if (!strcmp(name, "train"))
		return SPLIT_TRAIN;
	if (!strcmp(name, "val"))
		return SPLIT_VAL;
	die("eval: --split %s: must be train or val", name);
}

/* A model for evaluation alone: no gradients, no moments. */
static void place(struct model *m)
{
	struct plan plan;

	model_layout(m);
	model_plan(m, &plan, PHASE_EVAL, 0);
	plan_refuse(&plan);
	model_place(m, arch_alloc(plan.bytes_arena), PHASE_EVAL, 0, 0, NULL);
}

static void eval_forward(const char *path, const char *split, int samples)
{
	static struct model m;
	double loss = 0;
	int64_t step;

	place(&m);
	step = ckpt_load_weights(path, &m);
	eval_loss(&m, split_named(split), samples, &loss);
	printf("step %" PRId64 " %s loss %.6f ppl %.4f per %s (%d batches of %d x %d)\n", step,
	       split, loss, exp(loss), data_unit(), samples, B_MAX, T_MAX);
}

/* The positions from @from on, by the forward and through the caches. */
static void eval_decode(const char *path, const char *split, int samples, int from)
{
	struct decode_loss loss = decode_loss(path, split_named(split), samples, from);

	printf("step %" PRId64 " %s loss %.6f from position %d on, through the caches %.6f "
	       "(%d batches of %d x %d)\n", loss.step, split, loss.forward, from, loss.decode,
	       samples, B_MAX, T_MAX);
}

int verb_eval(int argc, char **argv)
{
	const char *path = "runs/" CONFIG_RUN_NAME, *split = "val", *data = CONFIG_DATA_PATH;
	int64_t device = 0, threads = 0, samples = CONFIG_EVAL_SAMPLES, decode = -1;
	const struct opt opts[] = {
		{ "checkpoint", OPT_STRING, &path, 0, 0, "checkpoint folder, or run folder: its best" },
		{ "split", OPT_STRING, &split, 0, 0, "train or val (default)" },
		{ "samples", OPT_INT, &samples, 1, 1e9, "batches, default EVAL_SAMPLES" },
		{ "data", OPT_STRING, &data, 0, 0, "data path, default DATA_PATH" },
		{ "decode", OPT_INT, &decode, 0, INT32_MAX,
		  "also through the decode caches, a prompt of N tokens first" },
		{ "device", OPT_INT, &device, 0, 1023, "device number" },
		{ "threads", OPT_INT, &threads, 0, 4096, "cpu threads, 0 = OMP_NUM_THREADS or all" },
	};

	options_parse("eval", "", opts, ARRAY_SIZE(opts), argc, argv);
	split_named(split);
	if (decode >= T_MAX)
		die("eval: --decode %" PRId64 " leaves none of CONFIG_BLOCK_SIZE=%d positions", decode,
		    T_MAX);
	free(ckpt_find(path));
	data_open(data);
	dist_init();
	arch_init(device, threads);
	if (decode >= 0)
		eval_decode(path, split, samples, decode);
	else
		eval_forward(path, split, samples);
	return 0;
}
