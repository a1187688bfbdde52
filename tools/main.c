// SPDX-License-Identifier: MIT
/*
 * The verbs, one line each. `tenon VERB --help` lists the flags of one.
 */
#include <errno.h>
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
	{ "bench", verb_bench, "time training steps on random tokens" },
};

static void print_verbs(FILE *to)
{
	fputs("usage: tenon VERB [flags]\n", to);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		fprintf(to, "  %-10s %s\n", verbs[i].name, verbs[i].help);
	fputs("`tenon VERB --help` lists the flags of a verb\n", to);
}

/* What stdout did not take, behind a "> FILE" on a full disk, is a failure too. */
static int finish(int status)
{
	if ((fflush(stdout) || ferror(stdout)) && !status)
		die("cannot write to stdout: %s", strerror(errno));
	return status;
}

int main(int argc, char **argv)
{
	if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") ||
	    !strcmp(argv[1], "help")) {
		print_verbs(stdout);
		return finish(0);
	}
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (!strcmp(argv[1], verbs[i].name))
			return finish(verbs[i].run(argc - 1, argv + 1));
	die("unknown verb \"%s\"; `tenon --help` lists them", argv[1]);
}
