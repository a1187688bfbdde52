// SPDX-License-Identifier: MIT
/*
 * The machine as a device: threads, the arena, copies.
 */
#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "amx.h"
#include "arch.h"
#include "blas.h"
#include "options.h"
#include "thin.h"
#include "util.h"

enum {
	WARM_ROWS = 1024,	/* as many as a block of gemm.c */
	WARM_COLUMNS = 768,	/* more than a BLAS packs at a time */
	WARM_INNER = 512,	/* the same */
	WARM_SMALL = 32,	/* too few to be packed */
	COPY_BLOCK = 1 << 20,	/* bytes that one thread copies at a time */
};

/*
 * Every thread multiplies, all at the same time: each call then holds a packing buffer
 * of its own, and what a run will use of it is resident before the arena is. To leave
 * no other trace in the process's peak, the operands are pages that are never written,
 * and the results are in one place that stays: all threads store the same zeros there.
 * Then each kind of product, large and small: oneDNN makes code for each at its first
 * call, and ends with a signal where there is no memory for it.
 * @x: WARM_ROWS * WARM_INNER zeros
 */
static void warm_blas(const act_t *x)
{
	static acc_t c[WARM_ROWS * WARM_COLUMNS];

	blas_init();
#pragma omp parallel
	{
#pragma omp barrier
		blas_gemm(false, true, WARM_ROWS, WARM_COLUMNS, WARM_INNER, 1, x, WARM_INNER, x,
			  WARM_INNER, 0, c, WARM_COLUMNS);
	}
	for (int kind = 0; IS_ENABLED(CONFIG_BLAS_ONEDNN) && kind < 16; kind++) {
		int n = kind & 8 ? WARM_INNER : WARM_SMALL;

		blas_gemm(kind & 1, kind & 2, n, n, n, 1, x, n, x, n, kind & 4 ? 1 : 0, c, n);
	}
}

/*
 * One thread that takes what a thread of the team will take. @start: all of them exist or
 * are known to fail
 */
struct trial {
	pthread_t id;
	pthread_barrier_t *start;
	bool fits;
};

static void *try_one(void *arg)
{
	struct trial *t = arg;
	size_t bytes = blas_thread_bytes() + (64 << 10);
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	t->fits = p != MAP_FAILED;
	pthread_barrier_wait(t->start);
	if (t->fits)
		munmap(p, bytes);
	return NULL;
}

/*
 * All threads at the same time, before the libraries start theirs: these end the process
 * in words of their own, or wait for memory that never comes.
 */
static void try_threads(int n)
{
	struct trial *all = xcalloc(n, sizeof(*all));
	pthread_barrier_t start;
	int made, fit = 0, err = 0;

	if (blas_threads() && n > blas_threads())
		die("%d threads: %s serves at most %d at a time; give a lower %s", n, blas_name(),
		    blas_threads(), flag_words("threads"));
	pthread_barrier_init(&start, NULL, n);
	for (made = 0; made < n - 1 && !err; made++) {
		all[made].start = &start;
		err = pthread_create(&all[made].id, NULL, try_one, &all[made]);
	}
	if (err)
		die("thread %d of %d cannot be started: %s; give a lower %s", made + 1, n,
		    strerror(err), flag_words("threads"));
	all[n - 1].start = &start;
	try_one(&all[n - 1]);
	for (int i = 0; i < n - 1; i++)
		pthread_join(all[i].id, NULL);
	for (int i = 0; i < n; i++)
		fit += all[i].fits;
	if (fit < n)
		die("no memory for %d thread%s, each takes %zu MiB beside its stack: raise the limit "
		    "(ulimit -v), give a lower %s, or set CONFIG_BLAS_BUILTIN=y", n,
		    n == 1 ? "" : "s", blas_thread_bytes() >> 20, flag_words("threads"));
	pthread_barrier_destroy(&start);
	free(all);
}

void arch_init(int device, int threads)
{
	act_t *x;

	if (device)
		die("device %d: the cpu is device 0 only; leave --device out", device);
	if (threads < 0)
		die("threads %d: must be 0 (all) or more", threads);
	/* without a number: OMP_NUM_THREADS, or all that the process may use */
	threads = threads ? threads : omp_get_max_threads();
	omp_set_dynamic(0);
	omp_set_num_threads(threads);
	mallopt(M_ARENA_MAX, 1);	/* each thread's own would take 64 MiB */
	/* before the trial: what is found free there must not be taken by this */
	x = xcalloc((size_t)WARM_ROWS * WARM_INNER, sizeof(*x));
	try_threads(threads);
	warm_blas(x);
	free(x);
}

/* Whether the compiler made one rounding of a product and a sum. */
static bool fused(void)
{
	volatile float x = 1 + 0x1p-20f, product = x * x;

	return x * x - product != 0;
}

const char *arch_bits(void)
{
	static char line[151];
	const char *few = amx_ready() ? ", few rows by AMX" : "";

	snprintf(line, sizeof(line), "%s%s%s, vectors of %d bytes%s%s", blas_name(),
		 NARROW ? blas_narrow_way() : "", few, __BIGGEST_ALIGNMENT__,
		 THIN_PAIRS ? " with pairs of bf16" : "", fused() ? ", fused" : "");
	return line;
}

const char *arch_describe(void)
{
	static char line[256];

	snprintf(line, sizeof(line), "cpu, %s, %d thread%s, %s%s", ACT_NAME,
		 omp_get_max_threads(), omp_get_max_threads() == 1 ? "" : "s", blas_name(),
		 NARROW ? blas_narrow_way() : "");
	return line;
}

/* First number behind @key in a text file (at its start where @key is ""), or @none. */
static uint64_t read_number(const char *path, const char *key, uint64_t none)
{
	char text[8192], *at = text;
	uint64_t value;

	if (file_peek(path, text, sizeof(text)) < 0)
		return none;
	while (strncmp(at, key, strlen(key))) {
		at = strchr(at, '\n');
		if (!at++)
			return none;
	}
	return sscanf(at + strlen(key), "%" SCNu64, &value) == 1 ? value : none;
}

/* Bytes that control group folder @dir still grants; its page cache can be dropped. */
static uint64_t cgroup_free(const char *dir, const char *max, const char *used, const char *cache)
{
	char path[8192 + 64];
	uint64_t limit, now, file;

	snprintf(path, sizeof(path), "%s/%s", dir, max);
	limit = read_number(path, "", UINT64_MAX);
	if (limit == UINT64_MAX)
		return UINT64_MAX;
	snprintf(path, sizeof(path), "%s/%s", dir, used);
	now = read_number(path, "", 0);
	snprintf(path, sizeof(path), "%s/memory.stat", dir);
	file = read_number(path, cache, 0);
	now -= MIN(now, file);
	return limit - MIN(limit, now);
}

/*
 * The least that the process's control group and its parents grant: version 2
 * ("0::/path") or the memory controller of version 1 ("4:memory:/path").
 */
static uint64_t cgroups_free(void)
{
	char text[8192], *rest = text, *line, dir[8192], *path;
	uint64_t least = UINT64_MAX, one;

	file_peek("/proc/self/cgroup", text, sizeof(text));
	while ((line = strsep(&rest, "\n"))) {
		bool v2 = !strncmp(line, "0::", 3);
		const char *mount = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";

		path = strstr(line, v2 ? "::/" : ":memory:/");
		if (!path)
			continue;
		path = strchr(path, '/');
		for (;;) {
			snprintf(dir, sizeof(dir), "%s%s", mount, path);
			one = v2 ? cgroup_free(dir, "memory.max", "memory.current",
					       "inactive_file ")
				 : cgroup_free(dir, "memory.limit_in_bytes",
					       "memory.usage_in_bytes", "total_inactive_file ");
			least = MIN(least, one);
			if (!*path)
				break;
			*strrchr(path, '/') = 0;
		}
	}
	return least;
}

size_t arch_memory(void)
{
	uint64_t kib = read_number("/proc/meminfo", "MemAvailable:", 0);

	return MIN(kib * 1024, cgroups_free());
}

size_t arch_memory_used(const char **what)
{
	if (what)
		*what = "in the whole process, with program, libraries and data";
	return peak_rss();
}

void *arch_alloc(size_t bytes)
{
	char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("no memory for an arena of %zu bytes (%s): lower CONFIG_BATCH_SIZE, "
		    "CONFIG_BLOCK_SIZE or CONFIG_N_LAYER", bytes, strerror(errno));
	madvise(p, bytes, MADV_HUGEPAGE);
	arch_zero(p, bytes);
	return p;
}

void arch_free(void *p, size_t bytes)
{
	munmap(p, bytes);
}

void *arch_host_alloc(size_t bytes)
{
	return xcalloc(bytes, 1);
}

void arch_host_free(void *p)
{
	free(p);
}

void arch_zero(void *dst, size_t bytes)
{
#pragma omp parallel for schedule(static) if (bytes > COPY_BLOCK)
	for (size_t i = 0; i < bytes; i += COPY_BLOCK)
		memset((char *)dst + i, 0, MIN((size_t)COPY_BLOCK, bytes - i));
}

void arch_copy(void *dst, const void *src, size_t bytes)
{
#pragma omp parallel for schedule(static) if (bytes > COPY_BLOCK)
	for (size_t i = 0; i < bytes; i += COPY_BLOCK)
		memcpy((char *)dst + i, (const char *)src + i, MIN((size_t)COPY_BLOCK, bytes - i));
}

void arch_put(void *dst, const void *src, size_t bytes)
{
	arch_copy(dst, src, bytes);
}

void arch_get(void *dst, const void *src, size_t bytes)
{
	arch_copy(dst, src, bytes);
}

void arch_get_later(void *dst, const void *src, size_t bytes)
{
	arch_copy(dst, src, bytes);
}

/* Kernels and copies are done when they return: there is nothing to wait for. */
void arch_sync(void)
{
}

void arch_mark_set(struct arch_mark *m)
{
	m->time = now();
}

void arch_mark_wait(struct arch_mark *m)
{
	(void)m;
}

double arch_mark_seconds(struct arch_mark *from, struct arch_mark *to)
{
	return to->time - from->time;
}

void arch_profile(bool on)
{
	(void)on;
}

void arch_replay(struct arch_graph *g, void (*body)(void *arg), void *arg)
{
	(void)g;
	body(arg);
}
