/* SPDX-License-Identifier: MIT */
/**
 * DOC: command line flags of the verbs
 */
#ifndef TENON_OPTIONS_H
#define TENON_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

enum option_kind { OPT_STRING, OPT_INT, OPT_REAL, OPT_FLAG };

/**
 * struct opt - one flag, "--name VALUE" or "--name=VALUE"
 * @name: without the dashes
 * @kind: OPT_STRING: const char **; OPT_INT: int64_t *; OPT_REAL: double *;
 *	OPT_FLAG: bool *, takes no value
 * @value: where it goes; holds the default before the call
 * @min: smallest legal number
 * @max: largest legal number; @min = @max = 0: any
 * @help: one line
 */
struct opt {
	const char *name;
	enum option_kind kind;
	void *value;
	double min, max;
	const char *help;
};

/**
 * options_parse() - fill the flags of one verb
 * @verb: its name, for messages
 * @usage: positional arguments, "" if none
 * @opts: table
 * @nr: lines
 * @argc: of the verb, argv[0] is the verb
 * @argv: permuted: positional arguments last
 *
 * --help prints the table and exits 0. An unknown flag (one that is near is named), a
 * missing or malformed value or one out of range dies.
 *
 * Returns: index of the first positional argument (argc if there is none; dies if
 * there is one and @usage is "").
 */
int options_parse(const char *verb, const char *usage, const struct opt *opts, int nr, int argc,
		  char **argv);

/**
 * struct nearest - the candidate that a mistyped word may have meant
 * @word: what was typed
 * @best: gets the candidate of the least edit distance; NULL where none is near
 */
struct nearest {
	const char *word, *best;
	int least;
};

/** nearest_offer() - one candidate; the first of several as near stays */
void nearest_offer(struct nearest *n, const char *candidate);

/**
 * flag_words() - what to type for a flag
 * @name: without the dashes
 *
 * Returns: "--restart", in static storage; "RESTART=1" behind flags_of_make(), where
 * make has a setting for it.
 */
const char *flag_words(const char *name);

/** flags_of_make() - make was typed, not this program: messages name its settings */
void flags_of_make(void);

/* the verbs (tools/main.c); each returns the exit status */
int verb_train(int argc, char **argv);
int verb_eval(int argc, char **argv);
int verb_generate(int argc, char **argv);
int verb_plan(int argc, char **argv);
int verb_config(int argc, char **argv);
int verb_dump(int argc, char **argv);
int verb_data(int argc, char **argv);
int verb_compress(int argc, char **argv);
int verb_bench(int argc, char **argv);

#endif
