// SPDX-License-Identifier: MIT
/*
 * What the splits are called, and what a loss is per.
 */
#include <string.h>

#include "data.h"
#include "util.h"

enum split data_split(const char *verb, const char *name)
{
	static const char *const names[] = { "train", "val", "test" };

	for (int s = 0; s < NR_SPLITS; s++)
		if (!strcmp(name, names[s]))
			return s;
	die("%s: --split %s: must be %s", verb, name, SYNTHETIC ? "train, val or test" :
	    "train or val; drawn data has test, too (CONFIG_DATA_MQAR, CONFIG_DATA_MARKOV)");
}

const char *data_unit(void)
{
	return IS_ENABLED(CONFIG_TOKENIZER_BYTES) ? "byte" : "token";
}
