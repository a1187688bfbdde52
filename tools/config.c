// SPDX-License-Identifier: MIT
/*
 * tenon config: what this binary was made from.
 */
#include "options.h"
#include "util.h"

int verb_config(int argc, char **argv)
{
	bool build = false, hash = false;
	const struct opt opts[] = {
		{ "build", OPT_FLAG, &build, 0, 0, "git state and compiler instead" },
		{ "hash", OPT_FLAG, &hash, 0, 0, "SHA-256 of the configuration text instead" },
	};

	options_parse("config", "", opts, ARRAY_SIZE(opts), argc, argv);
	if (build)
		puts(build_text());
	if (hash)
		puts(config_hash());
	if (!build && !hash)
		fputs(config_text(), stdout);
	return 0;
}
