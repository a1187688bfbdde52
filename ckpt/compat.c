// SPDX-License-Identifier: MIT
/*
 * In which symbols two configurations differ, and which of those matter.
 *
 * Kconfig declares which are free (free-X := resume, or weights): when a run is resumed,
 * names, paths, how often something is logged, evaluated, kept or sampled, and the study
 * around the run; when only the weights are used, whatever steers training alone as
 * well. SEED and MAX_ITERS are free because their effective values, flags included, are
 * compared apart. A symbol that is on no list matters.
 */
#include <generated/free.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt.h"
#include "util.h"

static const char *const free_resume[] = { FREE_RESUME };
static const char *const free_weights[] = { FREE_WEIGHTS };

static bool listed(const char *name, const char *const *list, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		if (!strcmp(name, list[i]))
			return true;
	return false;
}

static bool matters(const char *name, enum compat use)
{
	if (listed(name, free_resume, ARRAY_SIZE(free_resume)))
		return false;
	return use == COMPAT_RESUME || !listed(name, free_weights, ARRAY_SIZE(free_weights));
}

struct symbol {
	char *name, *value;
};

struct symbols {
	struct symbol *s;
	int nr;
};

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct symbol *)a)->name, ((const struct symbol *)b)->name);
}

/*
 * "CONFIG_X=value", or "# CONFIG_X is not set" as n; other lines give none. A real
 * may stand with or without quotes, so quotes do not count.
 */
static void parse_line(struct symbols *t, char *line)
{
	char *name = line, *value = "n", *end;

	if (!strncmp(line, "# CONFIG_", 9) && (end = strstr(line, " is not set"))) {
		name = line + 9;
	} else if (!strncmp(line, "CONFIG_", 7) && (end = strchr(line, '='))) {
		name = line + 7;
		value = end + 1;
	} else {
		return;
	}
	*end = 0;
	if (*value == '"') {
		value++;
		value[strcspn(value, "\"")] = 0;
	}
	t->s = xrealloc(t->s, (t->nr + 1) * sizeof(*t->s));
	t->s[t->nr++] = (struct symbol){ xstrdup(name), xstrdup(value) };
}

static struct symbols parse(const char *text)
{
	char *copy = xstrdup(text), *rest = copy, *line;
	struct symbols t = { 0 };

	while ((line = strsep(&rest, "\n")))
		parse_line(&t, line);
	free(copy);
	if (t.nr)
		qsort(t.s, t.nr, sizeof(*t.s), by_name);
	return t;
}

static void release(struct symbols *t)
{
	for (int i = 0; i < t->nr; i++) {
		free(t->s[i].name);
		free(t->s[i].value);
	}
	free(t->s);
}

/* A symbol without a line is one that its dependencies hide: as good as n. */
static char *add(char *list, const char *name, const char *was, const char *is, enum compat use)
{
	char *longer;

	was = was ? was : "n";
	is = is ? is : "n";
	if (!strcmp(was, is) || !matters(name, use))
		return list;
	longer = xasprintf("%s%s%s (was %s, is %s)", list ? list : "", list ? ", " : "", name, was,
			   is);
	free(list);
	return longer;
}

char *compat_diff(const char *was, const char *is, enum compat use)
{
	struct symbols a = parse(was), b = parse(is);
	char *list = NULL;
	int i = 0, j = 0;

	while (i < a.nr || j < b.nr) {
		int order = i == a.nr ? 1 : j == b.nr ? -1 : by_name(&a.s[i], &b.s[j]);
		const char *name = order > 0 ? b.s[j].name : a.s[i].name;

		list = add(list, name, order > 0 ? NULL : a.s[i].value,
			   order < 0 ? NULL : b.s[j].value, use);
		i += order <= 0;
		j += order >= 0;
	}
	release(&a);
	release(&b);
	return list;
}
