// SPDX-License-Identifier: MIT
/*
 * result.json: what a run came to, for people and for the study script.
 */
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

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

static json_t *describe(const struct run *r)
{
	double tok_s;
	char hex[65];
	int64_t peak;

	tensors_sha256(&r->m, &r->optim, hex);
	scan_metrics(r->dir, &tok_s, &peak);
	return json_pack("{s:s,s:I,s:I,s:I,s:I,s:o,s:o,s:I,s:o,s:I,s:I,s:f,s:I,s:I,s:s,s:o,s:s,s:s,s:s}",
			 "run", CONFIG_RUN_NAME, "seed", (json_int_t)r->st.seed,
			 "steps", (json_int_t)r->st.step, "total", (json_int_t)r->st.total,
			 "tokens", (json_int_t)(r->st.micro * BT),
			 "val_loss", real_or_null(r->st.eval_loss),
			 "val_ppl", real_or_null(exp(r->st.eval_loss)),
			 "best_step", (json_int_t)r->st.best_step,
			 "best_loss", real_or_null(r->st.best_step < 0 ? NAN : r->st.best_loss),
			 "params", (json_int_t)r->plan.params,
			 "params_published", (json_int_t)r->plan.params_published,
			 "tok_s", tok_s, "peak_bytes", (json_int_t)peak,
			 "skipped", (json_int_t)r->st.optim.common.skipped,
			 "weights_sha256", hex, "bigram_loss", real_or_null(r->bigram),
			 "data", source_describe(), "config_sha256", config_hash(),
			 "build", build_text());
}

static void show(const json_t *root)
{
	json_int_t steps = json_integer_value(json_object_get(root, "steps"));
	json_t *loss = json_object_get(root, "val_loss"), *ppl = json_object_get(root, "val_ppl");

	if (json_is_number(loss))
		log_line("result   step %lld, validation loss %.4f, perplexity %.2f", (long long)steps,
			 json_number_value(loss), json_number_value(ppl));
	else
		log_line("result   step %lld, validation loss not finite", (long long)steps);
	log_line("         %.0f tok/s (median), peak %.1f MiB, weights %.16s",
		 json_number_value(json_object_get(root, "tok_s")),
		 json_integer_value(json_object_get(root, "peak_bytes")) / MIB,
		 json_string_value(json_object_get(root, "weights_sha256")));
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
		die("cannot write %s: %s; make room, then run again", path, strerror(-err));
	show(root);
	log_line("         memory %.1f MiB planned, %.1f measured", r->plan.bytes_arena / MIB,
		 (peak_rss() - r->rss) / MIB);
	free(text);
	free(path);
	json_decref(root);
}

bool result_show(const char *dir, int64_t total)
{
	char *path = xasprintf("%s/result.json", dir);
	json_t *root = json_load_file(path, 0, NULL);
	bool done = json_is_integer(json_object_get(root, "steps")) &&
		    json_integer_value(json_object_get(root, "steps")) >= total &&
		    json_is_string(json_object_get(root, "weights_sha256"));

	if (done)
		show(root);
	json_decref(root);
	free(path);
	return done;
}
