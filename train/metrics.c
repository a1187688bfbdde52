// SPDX-License-Identifier: MIT
/*
 * metrics.jsonl and, with TENSORBOARD, the event file beside it. A row is in the
 * file when the call returns. Reals have 17 digits, so that two runs can be
 * compared bit by bit; what is not finite or not known is null.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tfevents.h"
#include "train.h"
#include "util.h"

struct metrics {
	char *dir, *path;
	struct file_writer *file;
	struct tfevents *events;	/* NULL without TENSORBOARD */
};

static void must(int err, const char *path)
{
	if (err)
		die("cannot write %s: %s; make room or give another --out, then run again: it "
		    "resumes from the last checkpoint", path, strerror(-err));
}

/* Whether a whole line is a row that stays; evaluations only up to step @last_eval. */
static bool stays(const char *line, size_t n, int64_t step, int64_t last_eval)
{
	json_t *row = json_loadb(line, n, 0, NULL);
	json_t *at = json_object_get(row, "step");
	int64_t last = json_object_get(row, "split") ? last_eval : step;
	bool keep = json_is_integer(at) && json_integer_value(at) <= last;

	json_decref(row);
	return keep;
}

/* Rows of later steps go, and with them a torn last line. */
static void cut(const char *path, int64_t step, int64_t last_eval)
{
	size_t size, keep = 0;
	char *text = (char *)file_read(path, &size), *end;

	if (!text && errno == ENOENT)
		return;
	must(text ? 0 : -errno, path);
	while ((end = memchr(text + keep, '\n', size - keep)) &&
	       stays(text + keep, end - (text + keep), step, last_eval))
		keep = end + 1 - text;
	if (keep < size)
		must(file_truncate(path, keep), path);
	free(text);
}

static void open_files(struct metrics *t)
{
	t->file = file_append(t->path);
	must(t->file ? 0 : -errno, t->path);
	if (!IS_ENABLED(CONFIG_TENSORBOARD))
		return;
	t->events = tfevents_open(t->dir);
	must(t->events ? 0 : -errno, t->dir);
}

static void close_files(struct metrics *t)
{
	must(file_finish(t->file), t->path);
	if (t->events)
		must(tfevents_close(t->events), t->dir);
}

struct metrics *metrics_open(const char *dir, int64_t step, bool evaluated)
{
	struct metrics *t = xcalloc(1, sizeof(*t));

	t->dir = xstrdup(dir);
	t->path = xasprintf("%s/metrics.jsonl", dir);
	cut(t->path, step, evaluated ? step : step - 1);
	must(tfevents_cut(dir, step, evaluated ? NULL : "val/loss"), dir);
	open_files(t);
	return t;
}

void metrics_sync(struct metrics *t)
{
	must(file_sync(t->file), t->path);
	if (t->events)
		must(tfevents_sync(t->events), t->dir);
}

void metrics_close(struct metrics *t)
{
	close_files(t);
	free(t->path);
	free(t->dir);
	free(t);
}

/* A JSON number, or null. */
static const char *real(char text[32], double x)
{
	if (isfinite(x))
		snprintf(text, 32, "%.17g", x);
	else
		strcpy(text, "null");
	return text;
}

static void put_row(struct metrics *t, char *line)
{
	must(file_write(t->file, line, strlen(line)), t->path);
	free(line);
}

static void put_scalar(struct metrics *t, int64_t step, const char *tag, double value)
{
	if (t->events)
		must(tfevents_scalar(t->events, step, tag, value), t->dir);
}

void metrics_step(struct metrics *t, const struct step_row *r)
{
	char loss[32], lr[32], norm[32], tok_s[32], ms[32];

	/* mfu is null: no peak of the cpu is known */
	put_row(t, xasprintf("{\"step\": %" PRId64 ", \"tokens\": %" PRId64 ", \"loss\": %s, "
			     "\"lr\": %s, \"grad_norm\": %s, \"tok_s\": %s, \"ms\": %s, "
			     "\"mfu\": null, \"peak_bytes\": %zu, \"skipped\": %" PRId64 "}\n",
			     r->step, r->tokens, real(loss, r->loss), real(lr, r->lr),
			     real(norm, r->grad_norm), real(tok_s, r->tok_s), real(ms, r->ms),
			     peak_rss(), r->skipped));
	put_scalar(t, r->step, "train/loss", r->loss);
	put_scalar(t, r->step, "train/lr", r->lr);
	put_scalar(t, r->step, "train/grad_norm", r->grad_norm);
	put_scalar(t, r->step, "train/tok_s", r->tok_s);
}

void metrics_stats(struct metrics *t, int64_t step, int layer, const char *mixer,
		   const struct metric *values, int nr)
{
	char *row = xasprintf("{\"step\": %" PRId64 ", \"layer\": %d, \"mixer\": \"%s\"", step,
			      layer, mixer), text[32];

	for (int i = 0; i < nr; i++) {
		char *tag = xasprintf("h.%d.%s/%s", layer, mixer, values[i].name);
		char *longer = xasprintf("%s, \"%s\": %s", row, values[i].name,
					 real(text, values[i].value));

		put_scalar(t, step, tag, values[i].value);
		free(row);
		free(tag);
		row = longer;
	}
	put_row(t, xasprintf("%s}\n", row));
	free(row);
}

void metrics_eval(struct metrics *t, int64_t step, const char *split, double loss)
{
	char *tag = xasprintf("%s/loss", split), a[32], b[32];

	put_row(t, xasprintf("{\"step\": %" PRId64 ", \"split\": \"%s\", \"loss\": %s, "
			     "\"ppl\": %s}\n", step, split, real(a, loss), real(b, exp(loss))));
	put_scalar(t, step, tag, loss);
	free(tag);
}
