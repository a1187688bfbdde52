// SPDX-License-Identifier: MIT
/*
 * Linear recurrences: which path takes a shape.
 */
#include "linattn.cuh"

void k_linattn_fwd(const struct linattn *a)
{
	if (linattn_mma_takes(a))
		linattn_mma_fwd(a);
	else
		linattn_any_fwd(a);
}

void k_linattn_bwd(const struct linattn *a, const struct linattn_grad *d)
{
	if (linattn_mma_takes(a))
		linattn_mma_bwd(a, d);
	else
		linattn_any_bwd(a, d);
}
