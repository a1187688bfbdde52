// SPDX-License-Identifier: MIT
/*
 * For test programs: the kernels of a cpu see all memory as it is.
 */
#include "arch.h"

void arch_share(void)
{
}
