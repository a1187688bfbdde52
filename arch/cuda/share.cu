// SPDX-License-Identifier: MIT
/*
 * For test programs: kernels take pointers to the program's own memory, wherever it is.
 *
 * Its variables, its heap and its stack are page-locked and mapped, each at its own
 * address; so a test hands a kernel what it hands the cpu's. Mapped memory is slow and
 * keeps every byte around a buffer visible to the host, guards included.
 */
#include <inttypes.h>
#include <malloc.h>
#include <string.h>

#include "arch.h"
#include "common.cuh"

enum {
	HEAP_BYTES = 1 << 29,	/* more than any test allocates */
	STACK_BYTES = 1 << 20,	/* below the caller */
	PAGE = 4096,
};

extern "C" {
extern char __data_start[], _end[];	/* the program's variables, from the linker */
extern void *__libc_stack_end;		/* where the first thread began */
}

static void share(const char *what, const void *from, const void *to)
{
	uintptr_t begin = (uintptr_t)from / PAGE * PAGE, end = ROUND_UP((uintptr_t)to, PAGE);
	cudaError_t err = cudaHostRegister((void *)begin, end - begin, cudaHostRegisterMapped);

	if (err != cudaSuccess)
		die("the %s of this test program, %zu bytes, cannot be mapped for the GPU: %s; "
		    "run as root, or raise ulimit -l", what, (size_t)(end - begin),
		    cudaGetErrorString(err));
}

/* The heap, as the kernel of the system knows it; what was allocated before this, too. */
static void heap_range(uintptr_t *begin, uintptr_t *end)
{
	FILE *f = fopen("/proc/self/maps", "r");
	char line[512];

	*begin = *end = 0;
	while (f && !*end && fgets(line, sizeof(line), f))
		if (strstr(line, "[heap]") &&
		    sscanf(line, "%" SCNxPTR "-%" SCNxPTR, begin, end) != 2)
			*end = 0;
	if (f)
		fclose(f);
}

/* All of the heap is one run of pages, which neither grows nor shrinks from here on. */
static void share_heap(void)
{
	uintptr_t begin, end;
	char *p;

	mallopt(M_MMAP_MAX, 0);
	mallopt(M_TRIM_THRESHOLD, INT32_MAX);
	p = (char *)malloc(HEAP_BYTES);
	heap_range(&begin, &end);
	if (!p || (uintptr_t)p < begin || (uintptr_t)p + HEAP_BYTES > end)
		die("no heap of %d bytes in one piece: %p, heap %zx-%zx", HEAP_BYTES, p,
		    (size_t)begin, (size_t)end);
	memset(p, 0, HEAP_BYTES);
	free(p);
	share("heap", (void *)begin, (void *)end);
}

/* Grows the stack first: a page that was never touched is not there to be mapped. */
static void __attribute__((noinline)) share_stack(void)
{
	volatile char deep[STACK_BYTES];

	for (int i = STACK_BYTES - 1; i >= 0; i -= PAGE / 2)
		deep[i] = 0;
	share("stack", (const void *)deep, (const char *)__libc_stack_end + sizeof(void *));
}

void arch_share(void)
{
	int device, same;

	CUDA(cudaGetDevice(&device));
	CUDA(cudaDeviceGetAttribute(&same, cudaDevAttrCanUseHostPointerForRegisteredMem, device));
	if (!same)
		die("this GPU does not see the host's memory at the host's addresses");
	share("variables", __data_start, _end);
	share_heap();
	share_stack();
}
