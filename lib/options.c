// SPDX-License-Identifier: MIT
/*
 * Flags of a verb: one table, "--name VALUE" or "--name=VALUE".
 */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"
#include "util.h"

enum { MAX_NAME = 64 };	/* longer words are compared up to here */

/* Levenshtein distance, capped at MAX_NAME letters. */
static int distance(const char *a, const char *b)
{
	int row[MAX_NAME + 1], n = MIN(strlen(b), (size_t)MAX_NAME), diag, up;

	for (int j = 0; j <= n; j++)
		row[j] = j;
	for (int i = 1; *a && i <= MAX_NAME; a++, i++) {
		diag = row[0];
		row[0] = i;
		for (int j = 1; j <= n; j++) {
			up = row[j];
			row[j] = MIN(MIN(up, row[j - 1]) + 1, diag + (*a != b[j - 1]));
			diag = up;
		}
	}
	return row[n];
}

/* Near: at most half of the longer word differs. */
void nearest_offer(struct nearest *n, const char *candidate)
{
	int d = distance(n->word, candidate);

	if (2 * d > (int)MAX(strlen(n->word), strlen(candidate)) || (n->best && d >= n->least))
		return;
	n->least = d;
	n->best = candidate;
}

static bool made;

void flags_of_make(void)
{
	made = true;
}

const char *flag_words(const char *name)
{
	static const struct { const char *flag, *setting; } settings[] = {
		{ "out", "OUT=DIR" }, { "restart", "RESTART=1" }, { "threads", "THREADS=N" },
		{ "allow-config-change", "ALLOW_CONFIG_CHANGE=1" },
		{ "data", "CONFIG_DATA_PATH" }, { "seed", "CONFIG_SEED" },
		{ "steps", "CONFIG_MAX_ITERS" },
	};
	static char words[3][MAX_NAME];	/* a message may name three */
	static int next;
	char *at = words[next++ % ARRAY_SIZE(words)];

	for (size_t i = 0; made && i < ARRAY_SIZE(settings); i++)
		if (!strcmp(name, settings[i].flag))
			return settings[i].setting;
	snprintf(at, sizeof(words[0]), "--%s", name);
	return at;
}

/* The default, as --help shows it; "" where there is nothing to say. */
static void show_default(const struct opt *o, char *buf, size_t size)
{
	*buf = 0;
	if (o->kind == OPT_STRING && *(const char **)o->value && **(const char **)o->value)
		snprintf(buf, size, " [%s]", *(const char **)o->value);
	else if (o->kind == OPT_INT && (o->min == o->max || *(int64_t *)o->value >= o->min))
		snprintf(buf, size, " [%lld]", (long long)*(int64_t *)o->value);
	else if (o->kind == OPT_REAL)
		snprintf(buf, size, " [%g]", *(double *)o->value);
}

static void print_help(const char *verb, const char *usage, const struct opt *opts, int nr)
{
	static const char *const values[] = { " TEXT", " N", " X", "" };
	char left[MAX_NAME], def[256];

	printf("usage: tenon %s [flags]%s%s\n", verb, *usage ? " " : "", usage);
	for (int i = 0; i < nr; i++) {
		snprintf(left, sizeof(left), "--%s%s", opts[i].name, values[opts[i].kind]);
		show_default(&opts[i], def, sizeof(def));
		printf("  %-24s %s%s\n", left, opts[i].help, def);
	}
	printf("  %-24s %s\n", "--help", "this text");
}

static void check_range(const char *verb, const struct opt *o, const char *text, double value)
{
	if (isfinite(value) && ((!o->min && !o->max) || (value >= o->min && value <= o->max)))
		return;
	if (!isfinite(value) && !o->min && !o->max)
		die("%s: %s: %s is no finite number", verb, flag_words(o->name), text);
	die("%s: %s: %s is out of range: give %.15g to %.15g", verb, flag_words(o->name), text,
	    o->min, o->max);
}

static void set_int(const char *verb, const struct opt *o, const char *text)
{
	char *end;
	long long v;

	errno = 0;
	v = strtoll(text, &end, 10);
	if (end == text || *end || isspace((unsigned char)*text))
		die("%s: %s wants a whole number, not '%s'", verb, flag_words(o->name), text);
	if (errno)
		die("%s: %s: %s does not fit into 64 bits", verb, flag_words(o->name), text);
	check_range(verb, o, text, v);
	*(int64_t *)o->value = v;
}

static void set_real(const char *verb, const struct opt *o, const char *text)
{
	char *end;
	double v = strtod(text, &end);

	if (end == text || *end || isspace((unsigned char)*text))
		die("%s: %s wants a number, not '%s'", verb, flag_words(o->name), text);
	check_range(verb, o, text, v);
	*(double *)o->value = v;
}

static void set_value(const char *verb, const struct opt *o, const char *text)
{
	if (o->kind == OPT_INT)
		set_int(verb, o, text);
	else if (o->kind == OPT_REAL)
		set_real(verb, o, text);
	else
		*(const char **)o->value = text;
}

/* One that is not in the table: @dashes and @name as they were typed. */
static void __attribute__((noreturn)) unknown(const char *verb, const struct opt *opts, int nr,
					      const char *dashes, const char *name)
{
	struct nearest n = { .word = name };
	const char *why = strlen(dashes) == 1 ? ": flags begin with two dashes" : "";

	for (int i = 0; i < nr; i++)
		nearest_offer(&n, opts[i].name);
	nearest_offer(&n, "help");
	if (n.best)
		die("%s: unknown flag %s%s%s: did you mean --%s? ('tenon %s --help' lists all)",
		    verb, dashes, name, why, n.best, verb);
	die("%s: unknown flag %s%s%s ('tenon %s --help' lists all)", verb, dashes, name, why, verb);
}

static const struct opt *find(const struct opt *opts, int nr, const char *name)
{
	for (int i = 0; i < nr; i++)
		if (!strcmp(opts[i].name, name))
			return &opts[i];
	return NULL;
}

/*
 * One flag, @arg without its dashes. @next: the word behind it, NULL if none.
 * Returns: how many words it took.
 */
static int parse_flag(const char *verb, const struct opt *opts, int nr, const char *arg,
		      const char *next)
{
	char *name = xstrdup(arg), *eq = strchr(name, '=');
	const char *inside = eq ? arg + (eq - name) + 1 : NULL;
	const struct opt *o;

	if (eq)
		*eq = 0;
	o = find(opts, nr, name);
	if (!o)
		unknown(verb, opts, nr, "--", name);
	free(name);
	if (o->kind == OPT_FLAG) {
		if (inside)
			die("%s: --%s takes no value", verb, o->name);
		*(bool *)o->value = true;
		return 1;
	}
	if (!inside && (!next || !strncmp(next, "--", 2)))
		die("%s: --%s wants a value (--%s=VALUE)", verb, o->name, o->name);
	set_value(verb, o, inside ? inside : next);
	return inside ? 1 : 2;
}

/* Is @arg a flag? A lone dash and numbers below 0 are not. */
static bool is_flag(const char *arg)
{
	return arg[0] == '-' && arg[1] && !strchr("0123456789.", arg[1]);
}

int options_parse(const char *verb, const char *usage, const struct opt *opts, int nr, int argc,
		  char **argv)
{
	char **plain = xcalloc(argc + 1, sizeof(*plain));
	int nr_plain = 0, i = 1;

	while (i < argc) {
		if (!strcmp(argv[i], "--")) {
			while (++i < argc)
				plain[nr_plain++] = argv[i];
		} else if (!is_flag(argv[i])) {
			plain[nr_plain++] = argv[i++];
		} else if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
			print_help(verb, usage, opts, nr);
			stdout_check();
			exit(0);
		} else if (strncmp(argv[i], "--", 2)) {
			unknown(verb, opts, nr, "-", argv[i] + 1);
		} else {
			i += parse_flag(verb, opts, nr, argv[i] + 2,
					i + 1 < argc ? argv[i + 1] : NULL);
		}
	}
	if (nr_plain && !*usage)
		die("%s: what is '%s'? It takes flags only ('tenon %s --help')", verb, plain[0],
		    verb);
	/* the flags' words are done with: only where the positional ones start counts */
	memcpy(argv + argc - nr_plain, plain, nr_plain * sizeof(*plain));
	free(plain);
	return argc - nr_plain;
}
