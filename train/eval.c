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
#include "util.h"

bool eval_loss(struct model *m, enum split s, int count, int32_t *tok, double *loss)
{
	double sum = 0;

	for (int i = 0; i < count; i++) {
		if (stop_signal())
			return false;
		data_eval_batch(s, i, count, B_MAX, T_MAX, tok);
		model_forward(m, tok, B_MAX, T_MAX, false);
		sum += model_loss(m);
	}
	*loss = sum / count;
	return true;
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

int verb_eval(int argc, char **argv)
{
	const char *path = "runs/" CONFIG_RUN_NAME, *split = "val", *data = CONFIG_DATA_PATH;
	int64_t device = 0, threads = 0, samples = CONFIG_EVAL_SAMPLES, step;
	const struct opt opts[] = {
		{ "checkpoint", OPT_STRING, &path, 0, 0, "step folder, or run folder: its best" },
		{ "split", OPT_STRING, &split, 0, 0, "train or val (default)" },
		{ "samples", OPT_INT, &samples, 1, 1e9, "batches, default EVAL_SAMPLES" },
		{ "data", OPT_STRING, &data, 0, 0, "data path, default DATA_PATH" },
		{ "device", OPT_INT, &device, 0, 1023, "device number" },
		{ "threads", OPT_INT, &threads, 0, 4096, "cpu threads, 0 = all" },
	};
	static struct model m;
	enum split s;
	int32_t *tok;
	double loss = 0;

	options_parse("eval", "", opts, ARRAY_SIZE(opts), argc, argv);
	s = split_named(split);
	free(ckpt_find(path));
	data_open(data);
	dist_init();
	arch_init(device, threads);
	place(&m);
	step = ckpt_load_weights(path, &m);
	tok = xmalloc(sizeof(*tok) * B_MAX * (T_MAX + 1));
	eval_loss(&m, s, samples, tok, &loss);
	free(tok);
	printf("step %" PRId64 " %s loss %.6f ppl %.4f (%" PRId64 " batches of %d x %d)\n", step,
	       split, loss, exp(loss), samples, B_MAX, T_MAX);
	return 0;
}
