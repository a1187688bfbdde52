/* SPDX-License-Identifier: MIT */
/**
 * DOC: the machine
 *
 * One arch per binary, chosen at link time: arch/<arch>/device.* defines these
 * functions. Kernels (kernels.h) and copies run in order on one stream; on the
 * cpu they are done when they return.
 */
#ifndef TENON_ARCH_H
#define TENON_ARCH_H

#include <stddef.h>

/**
 * arch_init() - open the device, once, before anything else here
 * @device: device number (cpu: 0 only, else dies)
 * @threads: cpu threads, 0 = all that the process may use; the number changes
 *	no bit of any result
 *
 * Also warms the BLAS up, so that its buffers count before the arena.
 */
void arch_init(int device, int threads);

/**
 * arch_describe() - device, library and threads for the log
 *
 * Returns: one line, static storage.
 */
const char *arch_describe(void);

/**
 * arch_memory() - bytes that an arena may take now
 */
size_t arch_memory(void);

/**
 * arch_alloc() - the arena
 * @bytes: size; a multiple of TENSOR_ALIGN
 *
 * Returns: zeroed device memory aligned to TENSOR_ALIGN, every page touched.
 * Dies where there is none.
 */
void *arch_alloc(size_t bytes);

/** arch_free() - give arch_alloc()'s memory back */
void arch_free(void *p, size_t bytes);

/** arch_zero() - asynchronous: device bytes to 0 */
void arch_zero(void *dst, size_t bytes);

/** arch_copy() - asynchronous: device to device, no overlap */
void arch_copy(void *dst, const void *src, size_t bytes);

/** arch_put() - asynchronous: host to device; @src is free when it returns */
void arch_put(void *dst, const void *src, size_t bytes);

/** arch_get() - device to host; waits for the stream */
void arch_get(void *dst, const void *src, size_t bytes);

/** arch_sync() - wait for everything that was started */
void arch_sync(void);

#endif
