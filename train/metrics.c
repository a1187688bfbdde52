// SPDX-License-Identifier: MIT
/*
 * metrics.jsonl and, with TENSORBOARD, the event file beside it, which has nothing that
 * the rows do not have: a run that resumes writes it anew from those that stay. A row is
 * in the file when the call returns. Reals have 17 digits, so that two runs can be
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

/* ---- events of a row --------------------------------------------------------- */

static void put_scalar(struct metrics *t, int64_t step, char *tag, const json_t *value)
{
	double x = json_is_number(value) ? json_number_value(value) : NAN;

	must(tfevents_scalar(t->events, step, tag, x), t->dir);
	free(tag);
}

/* The scalars that a row has for people who look at curves. */
static void put_events(struct metrics *t, json_t *row)
{
	static const char *const curves[] = { "loss", "loss_aux", "lr", "grad_norm", "tok_s" };
	const char *split = json_string_value(json_object_get(row, "split")), *key;
	const char *mixer = json_string_value(json_object_get(row, "mixer"));
	int layer = json_integer_value(json_object_get(row, "layer"));
	int64_t step = json_integer_value(json_object_get(row, "step"));
	json_t *value;

	if (split) {
		put_scalar(t, step, xasprintf("%s/loss", split), json_object_get(row, "loss"));
		return;
	}
	json_object_foreach(row, key, value) {
		bool curve = false;

		for (size_t i = 0; i < ARRAY_SIZE(curves); i++)
			curve |= !strcmp(key, curves[i]);
		if (mixer && strcmp(key, "step") && strcmp(key, "layer") && strcmp(key, "mixer"))
			put_scalar(t, step, xasprintf("h.%d.%s/%s", layer, mixer, key), value);
		else if (!mixer && curve)
			put_scalar(t, step, xasprintf("train/%s", key), value);
	}
}

/* ---- opening ------------------------------------------------------------------ */

/* Whether a row stays; evaluations only up to step @last_eval. */
static bool stays(json_t *row, int64_t step, int64_t last_eval)
{
	json_t *at = json_object_get(row, "step");
	int64_t last = json_object_get(row, "split") ? last_eval : step;

	return json_is_integer(at) && json_integer_value(at) <= last;
}

/* One whole line: its events where it stays. */
static bool keep_line(struct metrics *t, const char *line, size_t n, int64_t step,
		      int64_t last_eval)
{
	json_t *row = json_loadb(line, n, 0, NULL);
	bool keep = stays(row, step, last_eval);

	if (keep && t->events)
		put_events(t, row);
	json_decref(row);
	return keep;
}

/* Rows of later steps go, and with them a torn last line. */
static void cut(struct metrics *t, int64_t step, int64_t last_eval)
{
	size_t size, keep = 0;
	char *text = (char *)file_read(t->path, &size), *end;

	if (!text && errno == ENOENT)
		return;
	must(text ? 0 : -errno, t->path);
	while ((end = memchr(text + keep, '\n', size - keep)) &&
	       keep_line(t, text + keep, end - (text + keep), step, last_eval))
		keep = end + 1 - text;
	if (keep < size)
		must(file_truncate(t->path, keep), t->path);
	free(text);
}

struct metrics *metrics_open(const char *dir, int64_t step, bool evaluated)
{
	struct metrics *t = xcalloc(1, sizeof(*t));

	t->dir = xstrdup(dir);
	t->path = xasprintf("%s/metrics.jsonl", dir);
	if (IS_ENABLED(CONFIG_TENSORBOARD)) {
		t->events = tfevents_create(dir);
		must(t->events ? 0 : -errno, dir);
	}
	cut(t, step, evaluated ? step : step - 1);
	t->file = file_append(t->path);
	must(t->file ? 0 : -errno, t->path);
	return t;
}

void metrics_sync(struct metrics *t)
{
	if (!t)
		return;
	must(file_sync(t->file), t->path);
	if (t->events)
		must(tfevents_sync(t->events), t->dir);
}

void metrics_close(struct metrics *t)
{
	if (!t)
		return;
	must(file_finish(t->file), t->path);
	if (t->events)
		must(tfevents_close(t->events), t->dir);
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
	json_t *row;

	must(file_write(t->file, line, strlen(line)), t->path);
	if (t->events) {
		row = json_loads(line, 0, NULL);
		put_events(t, row);
		json_decref(row);
	}
	free(line);
}

void metrics_step(struct metrics *t, const struct step_row *r)
{
	char loss[32], lr[32], norm[32], tok_s[32], ms[32], aux[32], *more;

	if (!t)
		return;
	more = r->has_aux ? xasprintf(", \"loss_aux\": %s", real(aux, r->loss_aux)) : xstrdup("");
	/* mfu is null: no peak of the cpu is known */
	put_row(t, xasprintf("{\"step\": %" PRId64 ", \"tokens\": %" PRId64 ", \"loss\": %s, "
			     "\"lr\": %s, \"grad_norm\": %s, \"tok_s\": %s, \"ms\": %s, "
			     "\"mfu\": null, \"peak_bytes\": %zu, \"skipped\": %" PRId64 "%s}\n",
			     r->step, r->tokens, real(loss, r->loss), real(lr, r->lr),
			     real(norm, r->grad_norm), real(tok_s, r->tok_s), real(ms, r->ms),
			     peak_rss(), r->skipped, more));
	free(more);
}

void metrics_stats(struct metrics *t, int64_t step, int layer, const char *mixer,
		   const struct metric *values, int nr)
{
	char *row, text[32];

	if (!t)
		return;
	row = xasprintf("{\"step\": %" PRId64 ", \"layer\": %d, \"mixer\": \"%s\"", step, layer,
			mixer);
	for (int i = 0; i < nr; i++) {
		char *longer = xasprintf("%s, \"%s\": %s", row, values[i].name,
					 real(text, values[i].value));

		free(row);
		row = longer;
	}
	put_row(t, xasprintf("%s}\n", row));
	free(row);
}

void metrics_eval(struct metrics *t, int64_t step, const char *split, double loss)
{
	char a[32], b[32];

	if (t)
		put_row(t, xasprintf("{\"step\": %" PRId64 ", \"split\": \"%s\", \"loss\": %s, "
				     "\"ppl\": %s}\n", step, split, real(a, loss),
				     real(b, exp(loss))));
}
