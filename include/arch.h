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

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/**
 * arch_init() - open the device, once, before anything else here
 * @device: device number (cpu: 0 only, else dies)
 * @threads: cpu threads, 0 = OMP_NUM_THREADS, or all that the process may use; the
 *	number changes no bit of any result
 *
 * Also warms the BLAS up, so that its buffers count before the arena. Dies where threads
 * cannot be started or have no memory.
 */
void arch_init(int device, int threads);

/**
 * arch_describe() - device, library and threads for the log
 *
 * Returns: one line, static storage.
 */
const char *arch_describe(void);

/**
 * arch_bits() - what of the machine and its libraries the bits of a result depend on
 *
 * Two processes of one binary that say the same compute the same bits. It stands in every
 * checkpoint. Returns: one line of at most 150 bytes, static storage, once arch_init() is
 * done.
 */
const char *arch_bits(void);

/**
 * arch_memory() - bytes that an arena may take now
 */
size_t arch_memory(void);

/**
 * arch_memory_used() - most bytes so far of the memory that arenas are in
 * @what: NULL, or gets what was counted, behind "at most": static storage
 *
 * cpu: the process's resident set. A GPU: what was taken of the device since arch_init(),
 * arena, libraries and code of kernels, by whichever process; not the context.
 */
size_t arch_memory_used(const char **what);

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

/**
 * arch_host_alloc() - host memory from and to which copies are fast
 *
 * Returns: zeroed. Dies where there is none.
 */
void *arch_host_alloc(size_t bytes);

/** arch_host_free() - give arch_host_alloc()'s memory back */
void arch_host_free(void *p);

/** arch_zero() - asynchronous: device bytes to 0 */
void arch_zero(void *dst, size_t bytes);

/** arch_copy() - asynchronous: device to device, no overlap */
void arch_copy(void *dst, const void *src, size_t bytes);

/** arch_put() - asynchronous: host to device; @src is free when it returns */
void arch_put(void *dst, const void *src, size_t bytes);

/** arch_get() - device to host; waits for the stream */
void arch_get(void *dst, const void *src, size_t bytes);

/**
 * arch_get_later() - asynchronous: device to host
 *
 * @dst holds the bytes once a mark that was set after the call has been waited for.
 */
void arch_get_later(void *dst, const void *src, size_t bytes);

/**
 * arch_share() - for test programs: kernels may be given any memory of the process
 *
 * After arch_init(), from main(): the first thread's stack, all variables and what is
 * allocated from then on. What kernels left there is read behind arch_sync().
 */
void arch_share(void);

/** arch_sync() - wait for everything that was started */
void arch_sync(void);

/**
 * struct arch_mark - a point in the stream
 * @event: the arch's own, NULL at first
 * @time: the same, 0 at first
 */
struct arch_mark {
	void *event;
	double time;
};

/** arch_mark_set() - asynchronous: the point behind everything started so far */
void arch_mark_set(struct arch_mark *m);

/** arch_mark_wait() - until the stream has passed the point; at once where none was set */
void arch_mark_wait(struct arch_mark *m);

/**
 * arch_mark_seconds() - how long the device took from one point to a later one
 *
 * Both were set; waits for @to.
 */
double arch_mark_seconds(struct arch_mark *from, struct arch_mark *to);

/**
 * arch_profile() - begin or end what a profiler around this process should count
 *
 * A GPU's, as cudaProfilerStart() says; those of a cpu look at everything.
 */
void arch_profile(bool on);

/**
 * struct arch_graph - a fixed sequence of kernels and device copies
 * @exec: the arch's own, NULL at first
 */
struct arch_graph {
	void *exec;
};

/**
 * arch_replay() - run body(arg), asynchronously
 * @g: one for each sequence that differs in a pointer, a shape or a scalar
 *
 * The body starts kernels, arch_zero() and arch_copy() and nothing else. A cpu calls it
 * each time; an arch with graphs calls it once, records what it starts, and replays that
 * from then on. What changes from call to call is read from device memory.
 */
void arch_replay(struct arch_graph *g, void (*body)(void *arg), void *arg);

#ifdef __cplusplus
}
#endif

#endif
