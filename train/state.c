// SPDX-License-Identifier: MIT
/*
 * state.json: the scalars of a run. One table serves writing and reading.
 * Numbers come back bit for bit: integers as they are, reals with 17 digits, and
 * what JSON has no number for (nan, inf) as a string.
 */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train.h"
#include "util.h"

enum field_kind { FIELD_INT, FIELD_REAL, FIELD_NORMS, FIELD_DATA };

struct field {
	const char *name;
	enum field_kind kind;
	size_t offset;
};

#define INT(x) { #x, FIELD_INT, offsetof(struct ckpt_state, x) }
#define REAL(x) { #x, FIELD_REAL, offsetof(struct ckpt_state, x) }
#define OPTIM_INT(x) { "optim." #x, FIELD_INT, offsetof(struct ckpt_state, optim.x) }
#define OPTIM_REAL(x) { "optim." #x, FIELD_REAL, offsetof(struct ckpt_state, optim.x) }

static const struct field fields[] = {
	INT(step), INT(total), INT(seed), INT(micro),
	INT(eval_step), REAL(eval_loss), INT(best_step), REAL(best_loss),
	{ "data", FIELD_DATA, offsetof(struct ckpt_state, data) },
	OPTIM_INT(applied), OPTIM_INT(count), OPTIM_INT(resets), OPTIM_INT(warm),
	OPTIM_INT(skipped), OPTIM_INT(skipped_row), OPTIM_INT(spikes),
	OPTIM_INT(skip), OPTIM_INT(spike_now), OPTIM_INT(reset_now),
	OPTIM_REAL(norm), OPTIM_REAL(z), OPTIM_REAL(loss), OPTIM_REAL(gscale),
	OPTIM_REAL(lr), OPTIM_REAL(corr1), OPTIM_REAL(corr2),
	OPTIM_INT(nr_norms), OPTIM_INT(head),
	{ "optim.norms", FIELD_NORMS, offsetof(struct ckpt_state, optim.norms) },
};

static json_t *put_real(double x)
{
	char text[16];

	if (isfinite(x))
		return json_real(x);
	snprintf(text, sizeof(text), "%f", x);
	return json_string(text);
}

static bool get_real(const json_t *j, double *x)
{
	if (json_is_string(j))
		*x = strtod(json_string_value(j), NULL);
	else
		*x = json_number_value(j);
	return json_is_string(j) || json_is_number(j);
}

static json_t *put_norms(const double *x)
{
	json_t *list = json_array();

	for (int i = 0; i < OPTIM_WINDOW; i++)
		json_array_append_new(list, put_real(x[i]));
	return list;
}

static bool get_norms(const json_t *j, double *x)
{
	if (json_array_size(j) != OPTIM_WINDOW)
		return false;
	for (int i = 0; i < OPTIM_WINDOW; i++)
		if (!get_real(json_array_get(j, i), &x[i]))
			return false;
	return true;
}

static json_t *put_field(const struct field *f, const char *base)
{
	const void *at = base + f->offset;

	switch (f->kind) {
	case FIELD_INT:
		return json_integer(*(const int64_t *)at);
	case FIELD_REAL:
		return put_real(*(const double *)at);
	case FIELD_NORMS:
		return put_norms(at);
	default:
		return json_string(at);
	}
}

static bool get_field(const struct field *f, char *base, const json_t *j)
{
	void *at = base + f->offset;

	switch (f->kind) {
	case FIELD_INT:
		*(int64_t *)at = json_integer_value(j);
		return json_is_integer(j);
	case FIELD_REAL:
		return get_real(j, at);
	case FIELD_NORMS:
		return get_norms(j, at);
	default:
		snprintf(at, sizeof(((struct ckpt_state *)0)->data), "%s", json_string_value(j));
		return json_is_string(j);
	}
}

int state_write(const char *folder, const struct ckpt_state *st, struct ckpt_file *f)
{
	char *path = xasprintf("%s/%s", folder, f->name), *text;
	json_t *root = json_object();
	int err;

	for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
		json_object_set_new(root, fields[i].name, put_field(&fields[i], (const char *)st));
	text = json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
	f->bytes = strlen(text);
	sha256_hex(text, f->bytes, f->sha256);
	err = file_put(path, text, f->bytes);
	free(text);
	free(path);
	json_decref(root);
	return err;
}

char *state_read(const char *folder, struct ckpt_state *st)
{
	char *path = xasprintf("%s/state.json", folder), *wrong = NULL;
	json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, NULL);

	memset(st, 0, sizeof(*st));
	if (!json_is_object(root))
		wrong = xasprintf("%s: not a JSON object", path);
	for (size_t i = 0; i < ARRAY_SIZE(fields) && !wrong; i++)
		if (!get_field(&fields[i], (char *)st, json_object_get(root, fields[i].name)))
			wrong = xasprintf("%s: no valid \"%s\"", path, fields[i].name);
	json_decref(root);
	free(path);
	return wrong;
}
