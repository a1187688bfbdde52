// SPDX-License-Identifier: MIT
/* Linear recurrences forward: which path takes a shape. */
#include "linattn.cuh"

void k_linattn_fwd(const struct linattn *a)
{
	if (!linattn_mma_takes(a))
		linattn_any_fwd(a);
	else if (a->decay == LINATTN_VECTOR)
		linattn_mma_vector_fwd(a);
	else
		linattn_mma_scalar_fwd(a);
}
