// SPDX-License-Identifier: MIT
/*
 * Fails the n-th file operation of a program: LD_PRELOAD for tests/disk.t.
 *
 *   FAIL_BELOW   operations on paths that begin with this, and on files opened so, count
 *   FAIL_AT      which of them fails, from 1; 0: none
 *   FAIL_HOW     an errno value; or "short": a read or write does half; or "kill"
 *   FAIL_COUNT   a file for the number of operations, written when the program exits
 *
 * It stands before the C library's functions as lib/file.c and its callers use them; what the
 * library does inside itself (closedir, fopen) does not pass here.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FDS 1024

enum fate { GO, FAIL, SHORT };

static atomic_long count;
static bool counted[FDS];

/* The library's own function of the same name. */
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static bool below(const char *path)
{
	const char *top = getenv("FAIL_BELOW");

	return top && path && !strncmp(path, top, strlen(top));
}

static bool ours(int fd)
{
	return fd >= 0 && fd < FDS && counted[fd];
}

/* One operation more; what becomes of it. Only a read or write can be short. */
static enum fate next(bool mine, bool sized)
{
	const char *at = getenv("FAIL_AT"), *how = getenv("FAIL_HOW");

	if (!mine || ++count != (at ? atol(at) : 0) || !how)
		return GO;
	if (!strcmp(how, "kill"))
		raise(SIGKILL);
	if (!strcmp(how, "short"))
		return sized ? SHORT : GO;
	errno = atoi(how);
	return FAIL;
}

int open(const char *path, int flags, ...)
{
	mode_t mode = 0;
	va_list ap;
	int fd;

	va_start(ap, flags);
	if (flags & O_CREAT)
		mode = va_arg(ap, mode_t);
	va_end(ap);
	if (next(below(path), false) == FAIL)
		return -1;
	fd = NEXT(open)(path, flags, mode);
	if (fd >= 0 && fd < FDS)
		counted[fd] = below(path);
	return fd;
}

int close(int fd)
{
	bool mine = ours(fd);

	if (mine)
		counted[fd] = false;
	/* The descriptor is gone in either case, as Linux has it. */
	if (next(mine, false) == FAIL) {
		int err = errno;

		NEXT(close)(fd);
		errno = err;
		return -1;
	}
	return NEXT(close)(fd);
}

#define SIZED(name, args, call_half, call)						\
	ssize_t name args									\
	{											\
		enum fate fate = next(ours(fd), n > 1);						\
												\
		if (fate == FAIL)								\
			return -1;								\
		return fate == SHORT ? NEXT(name) call_half : NEXT(name) call;			\
	}

SIZED(read, (int fd, void *buf, size_t n), (fd, buf, n / 2), (fd, buf, n))
SIZED(write, (int fd, const void *buf, size_t n), (fd, buf, n / 2), (fd, buf, n))
SIZED(pread, (int fd, void *buf, size_t n, off_t at), (fd, buf, n / 2, at),
      (fd, buf, n, at))

#define PLAIN(name, args, mine, call)								\
	int name args										\
	{											\
		return next(mine, false) == FAIL ? -1 : NEXT(name) call;			\
	}

PLAIN(fsync, (int fd), ours(fd), (fd))
PLAIN(ftruncate, (int fd, off_t size), ours(fd), (fd, size))
PLAIN(rename, (const char *from, const char *to), below(from), (from, to))
PLAIN(mkdir, (const char *path, mode_t mode), below(path), (path, mode))
PLAIN(unlink, (const char *path), below(path), (path))
PLAIN(unlinkat, (int fd, const char *path, int flags), ours(fd), (fd, path, flags))
PLAIN(symlink, (const char *to, const char *path), below(path), (to, path))

__attribute__((destructor)) static void report(void)
{
	const char *path = getenv("FAIL_COUNT");
	FILE *file = path ? fopen(path, "w") : NULL;

	if (file) {
		fprintf(file, "%ld\n", (long)count);
		fclose(file);
	}
}
