// SPDX-License-Identifier: MIT
/*
 * The machine as a device: one GPU, one stream for kernels and copies.
 *
 * Copies from the host go through a ring of pinned slots, so that the caller's memory is
 * free at once; copies to the host that nobody waits for go through another, and are
 * handed out when a mark behind them has been passed. A sequence that is replayed is a
 * CUDA graph.
 */
#include <cublasLt.h>
#include <cuda_profiler_api.h>
#include <string.h>

#include "arch.h"
#include "common.cuh"

enum {
	PUT_SLOTS = 64,		/* copies to the device under way at a time */
	PUT_BYTES = 1 << 18,	/* of one slot */
	LATER_SLOTS = 32,	/* copies to the host that wait for their mark */
	LATER_BYTES = 1 << 16,
};

/* A ring of pinned slots. Slot n % slots belongs to piece n. */
static struct {
	char *put, *later;
	cudaEvent_t put_done[PUT_SLOTS];
	uint64_t puts;		/* pieces so far */
	struct {
		char *dst;
		size_t bytes;
	} wait[LATER_SLOTS];
	uint64_t laters;	/* pieces so far */
	uint64_t given;		/* of these, handed out */
} ring;

static cudaStream_t stream;
static char description[256], bits[151];
static size_t opened, used;	/* free memory when the device was opened; most used since */

cudaStream_t cuda_stream(void)
{
	return stream;
}

/* ---- opening ------------------------------------------------------------------- */

static void describe(int device)
{
	struct cudaDeviceProp prop;
	int driver, runtime;
	size_t lt = cublasLtGetVersion();

	CUDA(cudaGetDeviceProperties(&prop, device));
	CUDA(cudaDriverGetVersion(&driver));
	CUDA(cudaRuntimeGetVersion(&runtime));
	snprintf(bits, sizeof(bits), "%.80s, cuBLASLt %zu.%zu.%zu", prop.name, lt / 10000,
		 lt / 100 % 100, lt % 100);
	snprintf(description, sizeof(description), "cuda, %s, %s, %d multiprocessors, CUDA %d.%d, "
		 "driver's %d.%d", ACT_NAME, bits, prop.multiProcessorCount, runtime / 1000,
		 runtime % 1000 / 10, driver / 1000, driver % 1000 / 10);
}

static void choose(int device)
{
	cudaError_t err;
	int n = 0;

	err = cudaGetDeviceCount(&n);
	if (err != cudaSuccess || n == 0)
		die("no CUDA device: %s; run on a machine with an NVIDIA GPU (nvidia-smi -L lists "
		    "them), or set CONFIG_ARCH_CPU=y", cudaGetErrorString(err));
	if (device < 0 || device >= n)
		die("device %d: there are devices 0 to %d; name one of them", device, n - 1);
	CUDA(cudaSetDevice(device));
	if (cuda_capability() < 80)
		die("device %d: compute capability %d.%d; bf16 needs 8.0 (Ampere) or later",
		    device, cuda_capability() / 10, cuda_capability() % 10);
}

void arch_init(int device, int threads)
{
	if (threads < 0)
		die("threads %d: must be 0 or more", threads);
	choose(device);
	CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
	CUDA(cudaMallocHost((void **)&ring.put, (size_t)PUT_SLOTS * PUT_BYTES));
	CUDA(cudaMallocHost((void **)&ring.later, (size_t)LATER_SLOTS * LATER_BYTES));
	for (int i = 0; i < PUT_SLOTS; i++)
		CUDA(cudaEventCreateWithFlags(&ring.put_done[i], cudaEventDisableTiming));
	describe(device);
	opened = arch_memory();
}

const char *arch_bits(void)
{
	return bits;
}

const char *arch_describe(void)
{
	return description;
}

/* ---- memory -------------------------------------------------------------------- */

size_t arch_memory(void)
{
	size_t there, all;

	CUDA(cudaMemGetInfo(&there, &all));
	return there;
}

size_t arch_memory_used(const char **what)
{
	size_t there = arch_memory();

	if (what)
		*what = "of the device, with libraries and kernels, without the context";
	if (opened > there)
		used = MAX(used, opened - there);
	return used;
}

void *arch_alloc(size_t bytes)
{
	void *p = NULL;
	cudaError_t err = cudaMalloc(&p, bytes);

	if (err != cudaSuccess)
		die("no memory for an arena of %zu bytes (%zu are free; %s): lower "
		    "CONFIG_BATCH_SIZE, CONFIG_BLOCK_SIZE or CONFIG_N_LAYER", bytes,
		    arch_memory(), cudaGetErrorString(err));
	arch_zero(p, bytes);
	return p;
}

void arch_free(void *p, size_t bytes)
{
	(void)bytes;
	arch_sync();
	CUDA(cudaFree(p));
}

void *arch_host_alloc(size_t bytes)
{
	void *p = NULL;
	cudaError_t err = cudaMallocHost(&p, bytes);

	if (err != cudaSuccess)
		die("no memory for %zu bytes that the GPU copies to (%s): close other programs, or "
		    "decode fewer sequences at a time", bytes, cudaGetErrorString(err));
	return memset(p, 0, bytes);
}

void arch_host_free(void *p)
{
	CUDA(cudaFreeHost(p));
}

void arch_zero(void *dst, size_t bytes)
{
	CUDA(cudaMemsetAsync(dst, 0, bytes, stream));
}

void arch_copy(void *dst, const void *src, size_t bytes)
{
	CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, stream));
}

void arch_put(void *dst, const void *src, size_t bytes)
{
	for (size_t at = 0, n; at < bytes; at += n) {
		int slot = ring.puts % PUT_SLOTS;
		char *pinned = ring.put + (size_t)slot * PUT_BYTES;

		n = MIN(bytes - at, (size_t)PUT_BYTES);
		if (ring.puts++ >= PUT_SLOTS)
			CUDA(cudaEventSynchronize(ring.put_done[slot]));
		memcpy(pinned, (const char *)src + at, n);
		CUDA(cudaMemcpyAsync((char *)dst + at, pinned, n, cudaMemcpyHostToDevice,
				     stream));
		CUDA(cudaEventRecord(ring.put_done[slot], stream));
	}
}

void arch_get(void *dst, const void *src, size_t bytes)
{
	CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, stream));
	arch_sync();
}

/* Pieces before number @end have arrived: to where they were wanted. */
static void later_give(uint64_t end)
{
	for (; ring.given < end; ring.given++) {
		int slot = ring.given % LATER_SLOTS;

		memcpy(ring.wait[slot].dst, ring.later + (size_t)slot * LATER_BYTES,
		       ring.wait[slot].bytes);
	}
}

/* Where all slots wait for a mark, the stream is waited for instead. */
void arch_get_later(void *dst, const void *src, size_t bytes)
{
	for (size_t at = 0, n; at < bytes; at += n) {
		int slot = ring.laters % LATER_SLOTS;

		n = MIN(bytes - at, (size_t)LATER_BYTES);
		if (ring.laters - ring.given == LATER_SLOTS)
			arch_sync();
		ring.wait[slot].dst = (char *)dst + at;
		ring.wait[slot].bytes = n;
		CUDA(cudaMemcpyAsync(ring.later + (size_t)slot * LATER_BYTES,
				     (const char *)src + at, n, cudaMemcpyDeviceToHost, stream));
		ring.laters++;
	}
}

void arch_sync(void)
{
	CUDA(cudaStreamSynchronize(stream));
	later_give(ring.laters);
}

/* ---- marks: an event, and as its time the copies to the host before it -------------- */

void arch_mark_set(struct arch_mark *m)
{
	if (!m->event)
		CUDA(cudaEventCreate((cudaEvent_t *)&m->event));
	CUDA(cudaEventRecord((cudaEvent_t)m->event, stream));
	m->time = ring.laters;
}

void arch_mark_wait(struct arch_mark *m)
{
	if (!m->event)
		return;
	CUDA(cudaEventSynchronize((cudaEvent_t)m->event));
	later_give((uint64_t)m->time);
}

double arch_mark_seconds(struct arch_mark *from, struct arch_mark *to)
{
	float ms;

	arch_mark_wait(to);
	CUDA(cudaEventElapsedTime(&ms, (cudaEvent_t)from->event, (cudaEvent_t)to->event));
	return ms / 1e3;
}

void arch_profile(bool on)
{
	arch_sync();
	CUDA(on ? cudaProfilerStart() : cudaProfilerStop());
}

/* ---- graphs -------------------------------------------------------------------- */

/*
 * Recording is relaxed: kernels that are started for the first time are loaded, and
 * library handles opened, while it runs.
 */
void arch_replay(struct arch_graph *g, void (*body)(void *arg), void *arg)
{
	cudaGraph_t graph;

	if (!g->exec) {
		CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
		body(arg);
		CUDA(cudaStreamEndCapture(stream, &graph));
		CUDA(cudaGraphInstantiate((cudaGraphExec_t *)&g->exec, graph, 0));
		CUDA(cudaGraphDestroy(graph));
	}
	CUDA(cudaGraphLaunch((cudaGraphExec_t)g->exec, stream));
}
