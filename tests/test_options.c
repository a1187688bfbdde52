// SPDX-License-Identifier: MIT
/*
 * Flags: every kind, both spellings, and one line for every mistake.
 */
#include "options.h"
#include "scratch.h"

static const char *out;
static int64_t steps;
static double alpha;
static bool restart;
static const struct opt opts[] = {
	{ "out", OPT_STRING, &out, 0, 0, "output folder" },
	{ "steps", OPT_INT, &steps, 1, 1e6, "how many" },
	{ "alpha", OPT_REAL, &alpha, 0, 0, "a factor" },
	{ "restart", OPT_FLAG, &restart, 0, 0, "from the start" },
};

/* Split @line into words and parse it; *first gets the first positional argument. */
static int parse(const char *line, const char *usage, const char **first)
{
	static char copy[256], *argv[32];
	int argc = 0, at;

	snprintf(copy, sizeof(copy), "%s", line);
	for (char *p = strtok(copy, " "); p; p = strtok(NULL, " "))
		argv[argc++] = p;
	argv[argc] = NULL;
	out = "runs";
	steps = 10;
	alpha = 0.5;
	restart = false;
	at = options_parse("train", usage, opts, ARRAY_SIZE(opts), argc, argv);
	if (first)
		*first = at < argc ? argv[at] : NULL;
	return argc - at;
}

static void options_take_values(void)
{
	const char *first;

	ok(!parse("train", "", NULL) && !strcmp(out, "runs") && steps == 10 && alpha == 0.5 &&
	   !restart, "options_parse: defaults stay");
	ok(!parse("train --out x --steps=7 --alpha -1.5 --restart", "", NULL) &&
	   !strcmp(out, "x") && steps == 7 && alpha == -1.5 && restart,
	   "options_parse: both spellings");
	ok(!parse("train --out=a=b --steps 1 --steps 2", "", NULL) && !strcmp(out, "a=b") &&
	   steps == 2, "options_parse: the last wins, a value may hold =");
	ok(!parse("train --out=", "", NULL) && !*out, "options_parse: an empty text");
	ok(parse("train one --steps 5 two --restart -", "FILE...", &first) == 3 &&
	   !strcmp(first, "one") && steps == 5 && restart, "options_parse: positional last");
	ok(parse("train --restart -- --out", "FILE...", &first) == 1 && !strcmp(first, "--out"),
	   "options_parse: after --");
	ok(!parse("train --steps 1000000", "", NULL) && steps == 1000000, "options_parse: limit");
}

static void parse_one(const void *line)
{
	parse(line, "", NULL);
}

static void options_refuse_mistakes(void)
{
	static const struct { const char *line, *words; } bad[] = {
		{ "train --step 5", "did you mean --steps?" },
		{ "train --helo", "did you mean --help?" },
		{ "train --rstart", "did you mean --restart?" },
		{ "train -o x", "unknown flag -o" },
		{ "train --out", "--out wants a value" },
		{ "train --out --steps 5", "--out wants a value" },
		{ "train --steps 0", "out of range" },
		{ "train --steps 1000001", "1 to 1000000" },
		{ "train --steps 5x", "whole number" },
		{ "train --steps 1.5", "whole number" },
		{ "train --steps=", "whole number" },
		{ "train --steps 99999999999999999999", "64 bits" },
		{ "train --alpha x", "wants a number" },
		{ "train --alpha nan", "finite" },
		{ "train --alpha 1e999", "finite" },
		{ "train --restart=1", "takes no value" },
		{ "train file", "what is 'file'" },
		{ "train -5", "what is '-5'" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		ok(dies(parse_one, bad[i].line, bad[i].words), "options_parse refuses: %s",
		   bad[i].line);
}

/* Ends the process. */
static void ask_for_help(const void *unused)
{
	(void)unused;
	parse("train --help", "FILE", NULL);
	_exit(1);
}

int main(void)
{
	char help[4096];

	options_take_values();
	options_refuse_mistakes();
	ok(!child_says(ask_for_help, NULL, 1, help, sizeof(help)) &&
	   strstr(help, "tenon train [flags] FILE") && strstr(help, "--alpha X") &&
	   strstr(help, "how many [10]"), "options_parse: help exits 0");
	return tap_done();
}
