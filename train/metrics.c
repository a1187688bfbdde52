// SPDX-License-Identifier: MIT
/*
 * metrics.jsonl and, with TENSORBOARD, the event file beside it, which has nothing that
 * the rows do not have: a run that resumes writes it anew from those that stay. Every
 * checkpoint has size and digest of the rows before it. A row is in the file when the call
 * returns. Reals have 17 digits, so that two runs can be
 * compared bit by bit; what is not finite or not known is null.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arch.h"
#include "events.h"
#include "options.h"
#include "train.h"
#include "util.h"

struct metrics {
	char *dir, *path;
	struct file_writer *file;
	struct tfevents *events;	/* NULL without TENSORBOARD */
	struct sha256 sha;		/* of the @bytes in the file */
	int64_t bytes;
};

static void must(int err, const char *path)
{
	if (err == -ENOENT)
		die("cannot write %s: its folder was moved or removed under this run; move it back "
		    "and run again", path);
	if (err)
		die("cannot write %s: %s; make room or give another %s, then run again: it "
		    "resumes from the last checkpoint", path, file_error(-err), flag_words("out"));
}

/* ---- opening ------------------------------------------------------------------ */

/* Whether a row is of @st or earlier; its evaluation only where that was made. */
static bool stays(json_t *row, const struct ckpt_state *st)
{
	json_t *at = json_object_get(row, "step");
	bool pending = json_object_get(row, "split") && st->eval_step != st->step;

	return json_is_integer(at) && json_integer_value(at) <= st->step - pending;
}

/* One line, with its line feed, stays: its events, its part of the digest. */
static void keep_line(struct metrics *t, const char *line, size_t n)
{
	json_t *row = t->events ? json_loadb(line, n, 0, NULL) : NULL;

	if (row)
		must(events_row(t->events, row), t->dir);
	json_decref(row);
	sha256_update(&t->sha, line, n);
	t->bytes += n;
}

/* The first @n bytes stay, every line of them. */
static void keep(struct metrics *t, const char *text, size_t n)
{
	const char *at = text, *end;

	while (at < text + n && (end = memchr(at, '\n', text + n - at))) {
		keep_line(t, at, end + 1 - at);
		at = end + 1;
	}
}

static bool as_left(const char *text, size_t size, const struct ckpt_log *at)
{
	char hex[65];

	if (!at->bytes)
		return true;
	if (!text || (int64_t)size < at->bytes)
		return false;
	sha256_hex(text, at->bytes, hex);
	return !strcmp(hex, at->sha256);
}

/* Of a file that is not what it was: the rows that are whole, moved up. Returns: bytes. */
static size_t pick(char *text, size_t size, const struct ckpt_state *st, int *rows)
{
	char *at = text, *end, *to = text;

	for (*rows = 0; (end = memchr(at, '\n', text + size - at)); at = end + 1) {
		json_t *row = json_loadb(at, end - at, 0, NULL);

		if (stays(row, st)) {
			memmove(to, at, end + 1 - at);
			to += end + 1 - at;
			++*rows;
		}
		json_decref(row);
	}
	return to - text;
}

/* The file as it is found keeps everything under the first free name. */
static char *move_aside(const char *path)
{
	char *to = NULL;

	for (int n = 1; !to || !access(to, F_OK); n++) {
		free(to);
		to = xasprintf("%s.old-%d", path, n);
	}
	must(path_rename(path, to), path);
	return to;
}

/* @text: NULL where there is none. Its whole rows are the file from now on. */
static void mend(struct metrics *t, char *text, size_t size, const struct ckpt_state *st)
{
	size_t n = 0;
	char *to;
	int rows;

	if (!text) {
		warn("%s: missing: the run goes on from step %" PRId64 ", its rows up to there "
		     "are lost, and speed and peak memory are of what follows", t->path, st->step);
		return;
	}
	to = move_aside(t->path);
	n = pick(text, size, st, &rows);
	must(file_put(t->path, text, n), t->path);
	warn("%s: not what step %" PRId64 " left there (%zu bytes where %" PRId64 " were "
	     "written, or altered): it is now %s, %d whole rows of it stay, and the run goes on",
	     t->path, st->step, size, st->log.bytes, to, rows);
	keep(t, text, n);
	free(to);
}

/* Rows of later steps go, and with them a torn last line. */
static void cut(struct metrics *t, const struct ckpt_state *st)
{
	size_t size = 0;
	char *text = (char *)file_read(t->path, &size);

	must(text || errno == ENOENT ? 0 : -errno, t->path);
	if (!as_left(text, size, &st->log)) {
		mend(t, text, size, st);
	} else if (text) {
		keep(t, text, st->log.bytes);
		must(file_truncate(t->path, st->log.bytes), t->path);
	}
	free(text);
}

struct metrics *metrics_open(const char *dir, const struct ckpt_state *st)
{
	struct metrics *t = xcalloc(1, sizeof(*t));

	t->dir = xstrdup(dir);
	t->path = xasprintf("%s/metrics.jsonl", dir);
	sha256_init(&t->sha);
	if (IS_ENABLED(CONFIG_TENSORBOARD)) {
		t->events = events_create(dir);
		must(t->events ? 0 : -errno, dir);
	}
	cut(t, st);
	t->file = file_append(t->path);
	must(t->file ? 0 : -errno, t->path);
	return t;
}

void metrics_mark(const struct metrics *t, struct ckpt_log *at)
{
	struct sha256 copy;

	if (!t)
		return;
	copy = t->sha;
	at->bytes = t->bytes;
	sha256_final(&copy, at->sha256);
}

void metrics_sync(struct metrics *t)
{
	if (!t)
		return;
	must(file_sync(t->file), t->path);
	if (t->events)
		must(tfevents_sync(t->events), t->dir);
}

void metrics_success(struct metrics *t)
{
	if (t && t->events)
		must(tfevents_success(t->events), t->dir);
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
	sha256_update(&t->sha, line, strlen(line));
	t->bytes += strlen(line);
	if (t->events) {
		row = json_loads(line, 0, NULL);
		must(events_row(t->events, row), t->dir);
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
			     arch_memory_used(NULL), r->skipped, more));
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

void metrics_eval(struct metrics *t, int64_t step, const char *split, const struct eval *e)
{
	char loss[32], ppl[32], acc[32], floor[32], *more;

	if (!t)
		return;
	more = MARKOV ? xasprintf(", \"acc\": %s, \"floor\": %s", real(acc, e->acc),
				  real(floor, e->floor)) :
	       SYNTHETIC ? xasprintf(", \"acc\": %s", real(acc, e->acc)) : xstrdup("");
	put_row(t, xasprintf("{\"step\": %" PRId64 ", \"split\": \"%s\", \"loss\": %s, "
			     "\"ppl\": %s%s}\n", step, split, real(loss, e->loss),
			     real(ppl, exp(e->loss)), more));
	free(more);
}
