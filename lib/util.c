// SPDX-License-Identifier: MIT
/*
 * Messages that end the program, allocation that cannot fail, clock and memory use.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "util.h"

/* One line on stderr: "tenon: [file:line: ]message". */
static void message(const char *where, const char *fmt, va_list ap)
{
	fflush(stdout);
	flockfile(stderr);
	fprintf(stderr, "tenon: %s", where);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	funlockfile(stderr);
}

static void (*last_act)(int status);

void die_hook(void (*fn)(int status))
{
	last_act = fn;
}

static void __attribute__((noreturn)) leave(int status)
{
	void (*fn)(int) = last_act;

	last_act = NULL;
	if (fn)
		fn(status);
	exit(status);
}

void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	message("", fmt, ap);
	va_end(ap);
	leave(EXIT_INPUT);
}

void die_at(const char *file, int line, const char *fmt, ...)
{
	char where[256];
	va_list ap;

	snprintf(where, sizeof(where), "%s:%d: ", file, line);
	va_start(ap, fmt);
	message(where, fmt, ap);
	va_end(ap);
	leave(EXIT_FAILURE);
}

void warn(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	message("", fmt, ap);
	va_end(ap);
}

static void *check_memory(void *p, size_t n)
{
	if (!p && n)
		die("no memory for %zu bytes: close other programs, or lower BATCH_SIZE "
		    "or BLOCK_SIZE", n);
	return p;
}

void *xmalloc(size_t n)
{
	return check_memory(malloc(n), n);
}

void *xcalloc(size_t n, size_t size)
{
	return check_memory(calloc(n, size), n * size);
}

void *xrealloc(void *p, size_t n)
{
	return check_memory(realloc(p, n), n);
}

char *xstrdup(const char *s)
{
	size_t n = strlen(s) + 1;

	return memcpy(xmalloc(n), s, n);
}

char *xasprintf(const char *fmt, ...)
{
	va_list ap;
	char *s;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (n < 0)
		die_bug("bad format: %s", fmt);
	s = xmalloc(n + 1);
	va_start(ap, fmt);
	vsnprintf(s, n + 1, fmt, ap);
	va_end(ap);
	return s;
}

double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec * 1e-9;
}

/*
 * VmHWM belongs to this program alone; getrusage() would count what the process was
 * before exec (a Python that started it) as well.
 */
size_t peak_rss(void)
{
	FILE *f = fopen("/proc/self/status", "r");
	size_t kib = 0;
	char line[256];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "VmHWM: %zu", &kib) == 1)
			break;
	if (f)
		fclose(f);
	return kib * 1024;
}
