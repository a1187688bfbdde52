// SPDX-License-Identifier: MIT
/*
 * state.json: the scalars of a run. One table serves writing and reading; the
 * optimizer declares what is its own (struct optim_rule). Numbers come back bit for bit:
 * integers as they are, reals with 17 digits, and what JSON has no number for (nan, inf)
 * as a string.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt.h"
#include "data.h"
#include "json.h"
#include "util.h"

enum field_kind { FIELD_INT, FIELD_REAL, FIELD_TEXT };

/* @count: 1, or elements of an array (of a text: its room) */
struct field {
	const char *name;
	enum field_kind kind;
	size_t offset;
	int count;
};

#define INT(x) { #x, FIELD_INT, offsetof(struct ckpt_state, x), 1 }
#define REAL(x) { #x, FIELD_REAL, offsetof(struct ckpt_state, x), 1 }
#define OPTIM(kind, x) { "optim." #x, kind, offsetof(struct ckpt_state, optim.common.x), 1 }

static const struct field fields[] = {
	INT(step), INT(total), INT(seed), INT(micro),
	INT(eval_step), REAL(eval_loss), INT(best_step), REAL(best_loss),
	{ "data", FIELD_TEXT, offsetof(struct ckpt_state, data),
	  sizeof(((struct ckpt_state *)0)->data) },
	OPTIM(FIELD_INT, applied), OPTIM(FIELD_INT, skipped), OPTIM(FIELD_INT, skipped_row),
	OPTIM(FIELD_INT, skip), OPTIM(FIELD_REAL, norm), OPTIM(FIELD_REAL, loss),
	/* where sequences are drawn; a checkpoint of other data lacks them: */
	REAL(eval_acc), REAL(best_acc),
};

enum { NR_SHARED = ARRAY_SIZE(fields) - 2, NR_FIELDS = SYNTHETIC ? ARRAY_SIZE(fields) : NR_SHARED };

/* Field @i of all: those above, then the optimizer's; false behind the last. @name: room for it */
static bool field_at(int i, struct field *f, char name[64])
{
	const struct optim_scalar *s;

	if (i < NR_FIELDS) {
		*f = fields[i];
		return true;
	}
	if (i - NR_FIELDS >= optim_rule.nr_scalars)
		return false;
	s = &optim_rule.scalars[i - NR_FIELDS];
	snprintf(name, 64, "optim.%s", s->name);
	*f = (struct field){ name, s->real ? FIELD_REAL : FIELD_INT,
			     offsetof(struct ckpt_state, optim) + s->offset, s->count };
	return true;
}

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

static json_t *put_one(const struct field *f, const void *at, int i)
{
	if (f->kind == FIELD_INT)
		return json_integer(((const int64_t *)at)[i]);
	return put_real(((const double *)at)[i]);
}

static bool get_one(const struct field *f, void *at, int i, const json_t *j)
{
	if (f->kind == FIELD_REAL)
		return get_real(j, (double *)at + i);
	((int64_t *)at)[i] = json_integer_value(j);
	return json_is_integer(j);
}

static json_t *put_field(const struct field *f, const char *base)
{
	const void *at = base + f->offset;
	json_t *list;

	if (f->kind == FIELD_TEXT)
		return json_string(at);
	if (f->count == 1)
		return put_one(f, at, 0);
	list = json_array();
	for (int i = 0; i < f->count; i++)
		json_array_append_new(list, put_one(f, at, i));
	return list;
}

static bool get_field(const struct field *f, char *base, const json_t *j)
{
	void *at = base + f->offset;

	if (f->kind == FIELD_TEXT) {
		snprintf(at, f->count, "%s", json_string_value(j));
		return json_is_string(j);
	}
	if (f->count == 1)
		return get_one(f, at, 0, j);
	if (json_array_size(j) != (size_t)f->count)
		return false;
	for (int i = 0; i < f->count; i++)
		if (!get_one(f, at, i, json_array_get(j, i)))
			return false;
	return true;
}

int state_write(const char *folder, const struct ckpt_state *st, struct ckpt_file *f)
{
	char *path = xasprintf("%s/%s", folder, f->name), *text;
	json_t *root = json_object();
	struct field fd;
	char name[64];
	int err;

	for (int i = 0; field_at(i, &fd, name); i++)
		json_object_set_new(root, fd.name, put_field(&fd, (const char *)st));
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
	const char *why;
	json_t *root = json_read(path, &why);
	struct field fd;
	char name[64];

	if (!root)
		wrong = xasprintf("%s: %s", path, why);
	st->eval_acc = st->best_acc = 0;
	for (int i = 0; !wrong && field_at(i, &fd, name); i++)
		if ((i < NR_SHARED || i >= NR_FIELDS || json_object_get(root, fd.name)) &&
		    !get_field(&fd, (char *)st, json_object_get(root, fd.name)))
			wrong = xasprintf("%s: no valid \"%s\"", path, fd.name);
	json_decref(root);
	free(path);
	return wrong;
}
