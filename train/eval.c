// SPDX-License-Identifier: MIT
/*
 * Mean loss over fixed batches of a split, during training and as the verb eval; where data is
 * drawn, also how often the likeliest token is right.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "arch.h"
#include "dist.h"
#include "options.h"
#include "train.h"
#include "../infer/infer.h"
#include "util.h"

/**
 * struct sums - over the batches so far
 * @scored: positions
 * @right: of them, those whose likeliest token is the target
 * @rows: sequences
 * @loss: of the scored positions
 * @floor: the same of the chain
 */
struct sums {
	int64_t scored, right, rows;
	double loss, floor;
};

static int64_t count_scored(const int32_t *target, int n)
{
	int64_t scored = 0;

	for (int i = 0; i < n; i++)
		scored += target[i] >= 0;
	return scored;
}

/* Targets that are the likeliest token; one that is not scored is none. */
static int64_t count_right(struct model *m, const struct batch *x)
{
	int32_t *best = xmalloc(sizeof(*best) * BEST_ROWS);
	int rows = x->b * x->t;
	int64_t right = 0;

	for (int row = 0; row < rows; row += BEST_ROWS) {
		int n = MIN((int)BEST_ROWS, rows - row);

		arch_get(best, model_best(m, row, n), n * sizeof(*best));
		for (int i = 0; i < n; i++)
			right += best[i] == x->target[row + i];
	}
	free(best);
	return right;
}

static void add_batch(struct model *m, const struct batch *x, struct sums *sum)
{
	int64_t scored = count_scored(x->target, x->b * x->t);

	model_load(m, x);
	model_forward(m, false);
	sum->loss += model_loss(m) * scored;
	sum->scored += scored;
	sum->rows += x->b;
	if (SYNTHETIC)
		sum->right += count_right(m, x);
	for (int i = 0; MARKOV && i < x->b; i++)
		sum->floor += markov_floor(x->tok + i * x->t, x->target + i * x->t);
}

bool eval_split(struct model *m, enum split s, int count, struct eval *e)
{
	int32_t *tok = xmalloc(sizeof(*tok) * BT), *target = xmalloc(sizeof(*target) * BT);
	struct batch x = { .b = B_MAX, .t = T_MAX, .tok = tok, .target = target };
	struct sums sum = { 0 };
	bool stopped = false;

	for (int i = 0; i < count && !(stopped = stop_agreed()); i++) {
		x.b = data_eval_batch(s, i, count, B_MAX, T_MAX, tok, target);
		if (!x.b)
			break;
		add_batch(m, &x, &sum);
	}
	sum.scored = MAX(sum.scored, 1);
	*e = (struct eval){ sum.loss / sum.scored, (double)sum.right / sum.scored,
			    sum.floor / sum.scored, sum.rows };
	free(tok);
	free(target);
	return !stopped;
}

char *eval_more(const struct eval *e)
{
	if (MARKOV)
		return xasprintf("  acc %.4f  floor %.4f", e->acc, e->floor);
	return SYNTHETIC ? xasprintf("  acc %.4f", e->acc) : xstrdup("");
}

bool eval_reached(const struct ckpt_state *st)
{
	return CONFIG_STOP_ACCURACY_NONZERO && st->eval_step == st->step &&
	       st->eval_acc >= CONFIG_STOP_ACCURACY;
}

void eval_place(struct model *m)
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
	char *more, *size;
	struct eval e;
	int64_t step;

	eval_place(&m);
	step = ckpt_load_weights(path, &m);
	eval_split(&m, data_split("eval", split), samples, &e);
	more = eval_more(&e);
	size = SYNTHETIC ? xasprintf("%" PRId64 " sequences of %d", e.rows, T_MAX) :
			   xasprintf("%d batches of %d x %d", samples, B_MAX, T_MAX);
	printf("step %" PRId64 " %s loss %.6f ppl %.4f per %s%s (%s)\n", step, split, e.loss,
	       exp(e.loss), data_unit(), more, size);
	free(more);
	free(size);
}

/* The positions from @from on, by the forward and through the caches. */
static void eval_decode(const char *path, const char *split, int samples, int from)
{
	struct decode_loss loss = decode_loss(path, data_split("eval", split), samples, from);

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
		{ "split", OPT_STRING, &split, 0, 0, NR_SPLITS > 2 ? "train, val (default) or test" : "train or val (default)" },
		{ "samples", OPT_INT, &samples, 1, 1e9, "batches, default EVAL_SAMPLES" },
		{ "data", OPT_STRING, &data, 0, 0, "data path, default DATA_PATH" },
		{ "decode", OPT_INT, &decode, 0, INT32_MAX,
		  "also through the decode caches, a prompt of N tokens first" },
		{ "device", OPT_INT, &device, 0, 1023, "device number" },
		{ "threads", OPT_INT, &threads, 0, 4096, "cpu threads, 0 = OMP_NUM_THREADS or all" },
	};

	options_parse("eval", "", opts, ARRAY_SIZE(opts), argc, argv);
	data_split("eval", split);
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
