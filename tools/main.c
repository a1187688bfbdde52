// SPDX-License-Identifier: MIT
/*
 * The verbs, one line each. `tenon VERB --help` lists the flags of one. What make calls
 * begins with --called-by-make, so that refusals name what was typed.
 */
#include <string.h>

#include "options.h"
#include "util.h"

struct verb {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *help;
};

static const struct verb verbs[] = {
	{ "train", verb_train, "train, or resume, and write runs/NAME" },
	{ "eval", verb_eval, "loss of a checkpoint on fixed batches" },
	{ "generate", verb_generate, "continue a prompt with a checkpoint" },
	{ "plan", verb_plan, "parameters, memory and operations, before anything is allocated" },
	{ "config", verb_config, "the .config, git state and compiler of this binary" },
	{ "dump", verb_dump, "one batch with logits, loss and gradients, for other frameworks" },
	{ "data", verb_data, "sequences of a split, as an evaluation reads them" },
	{ "compress", verb_compress, "what of linear states is needed, and smaller checkpoints" },
	{ "bench", verb_bench, "time training or decode steps on random tokens" },
};

static void print_verbs(FILE *to)
{
	fputs("usage: tenon VERB [flags]\n", to);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		fprintf(to, "  %-10s %s\n", verbs[i].name, verbs[i].help);
	fputs("`tenon VERB --help` lists the flags of a verb, `tenon --version` says what it is "
	      "made of\n", to);
}

/* What stdout did not take, behind a "> FILE" on a full disk, is a failure too. */
static int finish(int status)
{
	if (!status)
		stdout_check();
	return status;
}

static bool is(const char *word, const char *name)
{
	return !strcmp(word, name);
}

static void __attribute__((noreturn)) unknown(const char *word)
{
	struct nearest n = { .word = word };

	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		nearest_offer(&n, verbs[i].name);
	if (n.best)
		die("unknown verb \"%s\": did you mean %s? `tenon --help` lists them", word, n.best);
	die("unknown verb \"%s\"; `tenon --help` lists them", word);
}

int main(int argc, char **argv)
{
	const char *word;

	process_init();
	if (argc > 1 && is(argv[1], "--called-by-make")) {
		flags_of_make();
		argc--;
		argv++;
	}
	word = argc > 1 ? argv[1] : "--help";
	if (is(word, "--help") || is(word, "-h") || is(word, "help")) {
		print_verbs(stdout);
		return finish(0);
	}
	if (is(word, "--version")) {
		printf("tenon %s\n", build_text());
		return finish(0);
	}
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (is(word, verbs[i].name))
			return finish(verbs[i].run(argc - 1, argv + 1));
	unknown(word);
}
