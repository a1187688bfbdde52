// SPDX-License-Identifier: MIT
/*
 * What TensorBoard shows of a run: the curves of metrics.jsonl, the .config and what the
 * run is called as texts, and every symbol as a hyper-parameter, to which TensorBoard sets
 * the final losses.
 *
 * Tags sort: loss comes first, statistics last.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data.h"
#include "events.h"
#include "util.h"

/* Set by events_about() before the first run is opened. */
static struct {
	const char *label;
	int64_t seed;
} about = { "", CONFIG_SEED };

struct hparams {
	struct tfevents_hparam *list;
	int nr;
};

void events_about(const char *label, int64_t seed)
{
	about.label = label;
	about.seed = seed;
}

/* ---- the first events ------------------------------------------------------------ */

/* The symbol of a line of .config: its name, and its value in @h; lines without are none. */
static bool parse_line(char *line, struct tfevents_hparam *h)
{
	const char off[] = "# CONFIG_", on[] = "CONFIG_";
	char *value, *end;

	if (!strncmp(line, off, strlen(off)) && (end = strstr(line, " is not set"))) {
		*end = 0;
		*h = (struct tfevents_hparam){ .name = line + strlen(off), .kind = HPARAM_SWITCH };
		return true;
	}
	value = strncmp(line, on, strlen(on)) ? NULL : strchr(line, '=');
	if (!value)
		return false;
	*value++ = 0;
	if (*value == '"') {
		value[strlen(value) - 1] = 0;
		value++;
	}
	*h = (struct tfevents_hparam){ .name = line + strlen(on), .kind = HPARAM_TEXT, .text = value };
	h->number = strtod(value, &end);
	if (*value && !*end)
		h->kind = HPARAM_NUMBER;
	else if (!strcmp(value, "y"))
		*h = (struct tfevents_hparam){ .name = h->name, .kind = HPARAM_SWITCH, .number = 1 };
	return true;
}

/* Every symbol; the seed is this run's. */
static int put_hparams(struct tfevents *t)
{
	char *text = xstrdup(config_text()), *rest = text, *line;
	struct tfevents_hparam *list = NULL;
	int nr = 0, err;

	while ((line = strsep(&rest, "\n"))) {
		list = xrealloc(list, (nr + 1) * sizeof(*list));
		nr += parse_line(line, &list[nr]);
		if (nr && !strcmp(list[nr - 1].name, "SEED"))
			list[nr - 1].number = about.seed;
	}
	err = tfevents_hparams(t, list, nr);
	free(list);
	free(text);
	return err;
}

/* Markdown: a list, and .config as it is. */
static int put_texts(struct tfevents *t)
{
	char *run = xasprintf("* run: " CONFIG_RUN_NAME "\n* arm: %s\n* seed: %" PRId64
			      "\n* block: " CONFIG_BLOCK "\n* data: %s\n* build: %s\n",
			      *about.label ? about.label : "none, a run by itself", about.seed,
			      source_describe(), build_text());
	char *config = xasprintf("```\n%s\n```\n", config_text());
	int err = tfevents_text(t, "run", run);

	if (!err)
		err = tfevents_text(t, "config", config);
	free(config);
	free(run);
	return err;
}

struct tfevents *events_create(const char *dir)
{
	struct tfevents *t = tfevents_create(dir);
	int err = t ? put_texts(t) : 0;

	if (t && !err)
		err = put_hparams(t);
	if (!err)
		return t;
	tfevents_close(t);
	errno = -err;
	return NULL;
}

/* ---- rows -------------------------------------------------------------------------- */

static int put_scalar(struct tfevents *t, int64_t step, char *tag, const json_t *value)
{
	double x = json_is_number(value) ? json_number_value(value) : NAN;
	int err = tfevents_scalar(t, step, tag, x);

	free(tag);
	return err;
}

/* The statistics of a sub-layer. */
static int put_stats(struct tfevents *t, int64_t step, json_t *row, const char *mixer)
{
	int layer = json_integer_value(json_object_get(row, "layer")), err = 0;
	json_t *value;
	const char *key;

	json_object_foreach(row, key, value)
		if (strcmp(key, "step") && strcmp(key, "layer") && strcmp(key, "mixer") && !err)
			err = put_scalar(t, step, xasprintf("stats.h.%d.%s/%s", layer, mixer, key),
					 value);
	return err;
}

/* What a row of a step has for people who look at curves. */
static int put_step(struct tfevents *t, int64_t step, json_t *row)
{
	static const char *const tags[][2] = {
		{ "loss", "loss/train" }, { "loss_aux", "loss/aux" }, { "lr", "optim/lr" },
		{ "grad_norm", "optim/grad_norm" }, { "tok_s", "speed/tok_s" },
	};
	int err = 0;

	for (size_t i = 0; i < ARRAY_SIZE(tags) && !err; i++) {
		json_t *value = json_object_get(row, tags[i][0]);

		if (value)
			err = put_scalar(t, step, xstrdup(tags[i][1]), value);
	}
	return err;
}

static int put_eval(struct tfevents *t, int64_t step, json_t *row, const char *split)
{
	json_t *acc = json_object_get(row, "acc");
	int err = put_scalar(t, step, xasprintf("loss/%s", split), json_object_get(row, "loss"));

	return acc && !err ? put_scalar(t, step, xasprintf("acc/%s", split), acc) : err;
}

int events_row(struct tfevents *t, json_t *row)
{
	const char *split = json_string_value(json_object_get(row, "split"));
	const char *mixer = json_string_value(json_object_get(row, "mixer"));
	int64_t step = json_integer_value(json_object_get(row, "step"));

	if (split)
		return put_eval(t, step, row, split);
	return mixer ? put_stats(t, step, row, mixer) : put_step(t, step, row);
}
