// SPDX-License-Identifier: MIT
/*
 * Messages that end the program, allocation that cannot fail, clock and memory use.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <jansson.h>

#include "util.h"

enum {
	MESSAGE = 16384,	/* bytes of the longest message */
	RESERVE = 1 << 18,	/* bytes for die(): a folder's list, stdio's buffers */
};

/* ---- one line ---------------------------------------------------------------- */

/*
 * Bytes of the character at @s, 0 where a terminal or JSON should not see it: control
 * characters (C0, DEL, C1), and what is no UTF-8 (RFC 3629).
 */
static int shown(const unsigned char *s)
{
	int n = *s < 0x80 ? 1 : *s < 0xc2 ? 0 : *s < 0xe0 ? 2 : *s < 0xf0 ? 3 : *s < 0xf5 ? 4 : 0;
	uint32_t c = n == 1 ? *s : *s & (0x7f >> n);

	for (int i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3f);
	}
	if (c < ' ' || (c >= 0x7f && c < 0xa0) || (c >= 0xd800 && c < 0xe000) || c > 0x10ffff)
		return 0;
	return (n == 3 && c < 0x800) || (n == 4 && c < 0x10000) ? 0 : n;
}

/* @text as a terminal may see it; @dst: NULL, or room for 4 times its bytes. Returns: bytes. */
static size_t escape(char *dst, const char *text)
{
	static const char named[] = "\n\r\t", letter[] = "nrt";
	size_t at = 0;

	while (*text) {
		int n = shown((const unsigned char *)text);
		const char *known = strchr(named, *text);
		char out[5];

		if (n)
			snprintf(out, sizeof(out), "%.*s", n, text);
		else if (known)
			snprintf(out, sizeof(out), "\\%c", letter[known - named]);
		else
			snprintf(out, sizeof(out), "\\x%02x", (unsigned char)*text);
		if (dst)
			strcpy(dst + at, out);
		at += strlen(out);
		text += n ? n : 1;
	}
	if (dst)
		dst[at] = 0;
	return at;
}

char *text_plain(const char *text)
{
	char *copy = xmalloc(escape(NULL, text) + 1);

	escape(copy, text);
	return copy;
}

/* One line on stderr: "tenon: [file:line: ]message". It asks for no memory. */
static void message(const char *where, const char *fmt, va_list ap)
{
	static char text[MESSAGE], line[4 * MESSAGE];

	fflush(stdout);
	flockfile(stderr);
	vsnprintf(text, sizeof(text), fmt, ap);
	escape(line, text);
	fprintf(stderr, "tenon: %s%s\n", where, line);
	funlockfile(stderr);
}

void stdout_check(void)
{
	if (fflush(stdout) || ferror(stdout))
		die("cannot write to stdout: %s", strerror(errno));
}

/* ---- the end ------------------------------------------------------------------ */

static void *reserve;
static void (*last_act)(int status);
static const char *doomed;

void process_init(void)
{
	signal(SIGXFSZ, SIG_IGN);
	reserve = xmalloc(RESERVE);
	json_set_alloc_funcs(xmalloc, free);
}

void die_hook(void (*fn)(int status))
{
	last_act = fn;
}

void die_removes(const char *path)
{
	doomed = path;
}

static void __attribute__((noreturn)) leave(int status)
{
	void (*fn)(int) = last_act;
	const char *path = doomed;

	doomed = NULL;
	files_drop();
	if (path)
		dir_remove(path);
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

/* ---- memory ------------------------------------------------------------------- */

static void *check_memory(void *p, size_t n)
{
	if (p || !n)
		return p;
	free(reserve);
	reserve = NULL;
	die("no memory for %zu bytes: close other programs, raise the limit (ulimit -v), or "
	    "lower CONFIG_BATCH_SIZE or CONFIG_BLOCK_SIZE", n);
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

char *xvasprintf(const char *fmt, va_list ap)
{
	va_list again;
	char *s;
	int n;

	va_copy(again, ap);
	n = vsnprintf(NULL, 0, fmt, again);
	va_end(again);
	if (n < 0)
		die_bug("bad format: %s", fmt);
	s = xmalloc(n + 1);
	vsnprintf(s, n + 1, fmt, ap);
	return s;
}

char *xasprintf(const char *fmt, ...)
{
	va_list ap;
	char *s;

	va_start(ap, fmt);
	s = xvasprintf(fmt, ap);
	va_end(ap);
	return s;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double median(double *x, int n)
{
	qsort(x, n, sizeof(*x), ascending);
	return (x[(n - 1) / 2] + x[n / 2]) / 2;
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
	char text[4096];
	size_t kib = 0;
	const char *at = file_peek("/proc/self/status", text, sizeof(text)) > 0 ?
		strstr(text, "VmHWM:") : NULL;

	return at && sscanf(at, "VmHWM: %zu", &kib) == 1 ? kib * 1024 : 0;
}
