// SPDX-License-Identifier: MIT
/*
 * The verbs dump and plan alone, which tests/torch.t asks of many configurations: half of
 * what tenon consists of is not compiled for it.
 */
#include <string.h>

#include "options.h"
#include "util.h"

int main(int argc, char **argv)
{
	process_init();
	if (argc > 1 && !strcmp(argv[1], "dump"))
		return verb_dump(argc - 1, argv + 1);
	if (argc > 1 && !strcmp(argv[1], "plan"))
		return verb_plan(argc - 1, argv + 1);
	die("dumps dump|plan [flags]");
}
