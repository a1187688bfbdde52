// SPDX-License-Identifier: MIT
/*
 * result.json: what a run came to, for people and for the study script.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arch.h"
#include "json.h"
#include "train.h"
#include "util.h"

#define MIB (1024.0 * 1024)

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Median speed and peak memory over all steps of the run, interruptions included. */
static void scan_metrics(const char *dir, double *tok_s, int64_t *peak)
{
	char *path = xasprintf("%s/metrics.jsonl", dir), *rest, *line, *text;
	size_t size, nr = 0, room = 0;
	double *speed = NULL;

	*tok_s = 0;
	*peak = 0;
	text = rest = (char *)file_read(path, &size);
	while (text && (line = strsep(&rest, "\n"))) {
		json_t *row = json_loads(line, 0, NULL);
		json_t *s = json_object_get(row, "tok_s");

		if (json_is_number(s)) {
			if (nr == room)
				speed = xrealloc(speed, (room = 2 * room + 64) * sizeof(*speed));
			speed[nr++] = json_number_value(s);
			*peak = MAX(*peak, json_integer_value(json_object_get(row, "peak_bytes")));
		}
		json_decref(row);
	}
	if (nr) {
		qsort(speed, nr, sizeof(*speed), ascending);
		*tok_s = (speed[(nr - 1) / 2] + speed[nr / 2]) / 2;
	}
	free(speed);
	free(text);
	free(path);
}

static json_t *real_or_null(double x)
{
	return isfinite(x) ? json_real(x) : json_null();
}

/* {mixer: why} of those that let a position see later ones */
static json_t *leaks(const struct model *m)
{
	json_t *o = json_object();

	for (int s = 0; s < NR_SUB; s++)
		if (m->sub[s].mixer->leaks)
			json_object_set_new(o, m->sub[s].mixer->name,
					    json_string(m->sub[s].mixer->leaks));
	return o;
}

/* Where sequences are drawn: how often they are answered right. */
static void describe_accuracy(json_t *o, const struct ckpt_state *st)
{
	json_object_set_new(o, "val_acc", real_or_null(st->eval_acc));
	json_object_set_new(o, "best_acc", real_or_null(st->best_step < 0 ? NAN : st->best_acc));
	json_object_set_new(o, "reached", json_boolean(eval_reached(st)));
}

static json_t *describe(const struct run *r)
{
	double tok_s;
	char hex[65];
	int64_t peak;
	json_t *o;

	tensors_sha256(&r->m, &r->optim, hex);
	scan_metrics(r->dir, &tok_s, &peak);
	o = json_pack("{s:s,s:s,s:I,s:I,s:I,s:I,s:o,s:o,s:s,s:I,s:o,s:I,s:I,s:I,s:f,s:I,s:I,s:s,s:o,"
			 "s:s,s:o,s:s,s:s}",
			 "run", CONFIG_RUN_NAME, "label", r->label, "seed", (json_int_t)r->st.seed,
			 "steps", (json_int_t)r->st.step, "total", (json_int_t)r->st.total,
			 "tokens", (json_int_t)(r->st.micro * BT),
			 "val_loss", real_or_null(r->st.eval_loss),
			 "val_ppl", real_or_null(exp(r->st.eval_loss)), "unit", data_unit(),
			 "best_step", (json_int_t)r->st.best_step,
			 "best_loss", real_or_null(r->st.best_step < 0 ? NAN : r->st.best_loss),
			 "params", (json_int_t)r->plan.params,
			 "params_published", (json_int_t)r->plan.params_published,
			 "cache_token", (json_int_t)r->plan.cache_token,
			 "tok_s", tok_s, "peak_bytes", (json_int_t)peak,
			 "skipped", (json_int_t)r->st.optim.common.skipped,
			 "weights_sha256", hex, "bigram_loss", real_or_null(r->bigram),
			 "data", source_describe(), "leaks", leaks(&r->m), "config_sha256", config_hash(),
			 "build", build_text());
	if (SYNTHETIC && o)
		describe_accuracy(o, &r->st);
	return o;
}

/* A model that knows less than counts of neighbours has learned nothing of use yet. */
static void show_baseline(double loss, const json_t *bigram)
{
	double base = json_number_value(bigram);

	if (json_is_number(bigram) && !(loss < base))
		log_line("         loses to the bigram baseline, counts of neighbouring %ss: %.4f; "
			 "train longer", data_unit(), base);
}

static void show(const json_t *root)
{
	json_int_t steps = json_integer_value(json_object_get(root, "steps"));
	json_t *loss = json_object_get(root, "val_loss"), *ppl = json_object_get(root, "val_ppl");
	json_t *bigram = json_object_get(root, "bigram_loss"), *acc = json_object_get(root, "val_acc");
	const char *what;

	if (json_is_number(loss))
		log_line("result   step %lld, validation loss %.4f, perplexity %.2f per %s",
			 (long long)steps, json_number_value(loss), json_number_value(ppl),
			 data_unit());
	else
		log_line("result   step %lld, validation loss not finite", (long long)steps);
	if (json_is_number(acc))
		log_line("         accuracy %.4f, the best %.4f", json_number_value(acc),
			 json_number_value(json_object_get(root, "best_acc")));
	show_baseline(json_is_number(loss) ? json_number_value(loss) : INFINITY, bigram);
	log_line("         %.0f tok/s (median), weights %.16s",
		 json_number_value(json_object_get(root, "tok_s")),
		 json_string_value(json_object_get(root, "weights_sha256")));
	arch_memory_used(&what);
	log_line("memory   %.1f MiB at most %s",
		 json_integer_value(json_object_get(root, "peak_bytes")) / MIB, what);
}

void result_write(struct run *r)
{
	char *path = xasprintf("%s/result.json", r->dir), *text;
	json_t *root = describe(r);
	int err;

	if (!root)
		die_bug("result: a text is no UTF-8");
	text = json_dumps(root, JSON_INDENT(1) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(17));
	err = file_put(path, text, strlen(text));
	if (err)
		die("cannot write %s: %s; make room, then run again", path, file_error(-err));
	show(root);
	log_line("         the model's part: %.1f MiB planned, %.1f measured",
		 r->plan.bytes_arena / MIB, (arch_memory_used(NULL) - r->before) / MIB);
	free(text);
	free(path);
	json_decref(root);
}

void result_drop(const char *dir)
{
	char *path = xasprintf("%s/result.json", dir);

	if (unlink(path) < 0 && errno != ENOENT)
		die("cannot remove %s, which says that the run is finished: %s", path, file_error(errno));
	free(path);
}

bool result_show(const char *dir, int64_t total)
{
	char *path = xasprintf("%s/result.json", dir);
	const char *why;
	json_t *root = json_read(path, &why);
	bool done = json_is_integer(json_object_get(root, "steps")) &&
		    json_integer_value(json_object_get(root, "steps")) >= total &&
		    json_is_string(json_object_get(root, "weights_sha256"));

	if (done)
		show(root);
	json_decref(root);
	free(path);
	return done;
}
