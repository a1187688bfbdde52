// SPDX-License-Identifier: MIT
/*
 * One rank: all micro-batches of a step are its own.
 */
#include "dist.h"

void dist_init(void)
{
	/* nobody to join, and every GRADIENT_ACCUMULATION is a multiple of one rank */
}

int dist_rank(void)
{
	return 0;
}

int dist_size(void)
{
	return 1;
}
