/* SPDX-License-Identifier: MIT */
/* What a test program begins with: the machine, whose kernels see all of its memory. */
#ifndef TENON_TEST_DEVICE_H
#define TENON_TEST_DEVICE_H

#include "arch.h"
#include "kernels.h"
#include "types.h"

/*
 * @threads: of the cpu, 0: as many as there are. Behind every kernel whose result the
 * host reads, or whose input it changes, stands arch_sync().
 */
static inline void device_open(int threads)
{
	arch_init(0, threads);
	arch_share();
	k_workspace_use(arch_alloc(ROUND_UP(k_workspace() + 1, TENSOR_ALIGN)));
}

#endif
