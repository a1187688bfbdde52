// SPDX-License-Identifier: MIT
/*
 * In which symbols two configurations differ, and which of those matter.
 *
 * Free when a run is resumed: names, paths, how often something is logged,
 * evaluated, kept or sampled, and the study around the run. SEED and MAX_ITERS
 * are free here because their effective values, flags included, are compared
 * apart. Free when only the weights are used: whatever steers training alone. A
 * symbol that is on no list matters.
 */
#include <stdlib.h>
#include <string.h>

#include "train.h"
#include "util.h"

/* A name that ends in _ stands for all that begin with it. */
static const char *const free_resume[] = {
	"RUN_NAME", "SEED", "MAX_ITERS", "MAX_TIME", "DATA_PATH", "LOG_INTERVAL",
	"EVAL_INTERVAL", "CHECKPOINT_", "TENSORBOARD", "GENERATION_", "RA_MLA_LOG_METRICS",
	"RA_MLA_ABLATION_", "ABLATION_",
};

static const char *const free_weights[] = {
	"LEARNING_RATE", "MIN_LR", "WARMUP_STEPS", "LR_", "WEIGHT_DECAY", "GRAD_CLIP", "ADAM_",
	"OPTIM_", "OPTIMIZER", "SPAM_", "GRADIENT_ACCUMULATION", "BATCH_SIZE", "EVAL_SAMPLES",
	"DATA_", "DIST_", "ARCH_", "BLAS_", "CPU_NATIVE",
};

static bool listed(const char *name, const char *const *list, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		size_t n = strlen(list[i]);

		if (list[i][n - 1] == '_' ? !strncmp(name, list[i], n) : !strcmp(name, list[i]))
			return true;
	}
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
