/* SPDX-License-Identifier: MIT */
/* Helpers of tests that touch files: a scratch folder, and "it ends with this line". */
#ifndef TENON_SCRATCH_H
#define TENON_SCRATCH_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tap.h"
#include "util.h"

static char scratch_dir[] = "/tmp/tenon-test-XXXXXX";

static inline void scratch_open(void)
{
	if (!mkdtemp(scratch_dir))
		die("%s: cannot make a scratch folder", scratch_dir);
}

static inline void scratch_close(void)
{
	dir_remove(scratch_dir);
}

/* A path in the scratch folder; the four latest stay valid. */
static inline const char *scratch(const char *name)
{
	static char path[4][512];
	static int next;
	char *p = path[next++ % 4];

	snprintf(p, sizeof(path[0]), "%s/%s", scratch_dir, name);
	return p;
}

static inline void put_file(const char *path, const void *buf, size_t n)
{
	FILE *f = fopen(path, "wb");

	if (!f || fwrite(buf, 1, n, f) != n || fclose(f))
		die("%s: cannot be written", path);
}

static inline bool file_holds(const char *path, const void *want, size_t n)
{
	size_t size = 0;
	uint8_t *p = file_read(path, &size);
	bool same = p && size == n && !memcmp(p, want, n);

	free(p);
	return same;
}

/* A child leaves at once: what a library does at exit is its parent's (a GPU driver's, say). */
static inline void child_leave(int status, void *unused)
{
	(void)unused;
	fflush(NULL);
	_exit(status);
}

/*
 * Run fn(arg) in a child; @text gets what it writes to file @to (1, 2), up to size - 1
 * bytes. Returns: how it ended, as waitpid() says; 0 where fn() returns.
 */
static inline int child_says(void (*fn)(const void *), const void *arg, int to, char *text,
			     size_t size)
{
	size_t n = 0;
	ssize_t got;
	int fd[2], status;
	pid_t pid;

	fflush(stdout);
	if (pipe(fd) || (pid = fork()) < 0)
		die("no child for a test");
	if (!pid) {
		dup2(fd[1], to);
		close(fd[0]);
		on_exit(child_leave, NULL);
		fn(arg);
		_exit(0);
	}
	close(fd[1]);
	while ((got = read(fd[0], text + n, size - 1 - n)) > 0)
		n += got;
	text[n] = 0;
	close(fd[0]);
	waitpid(pid, &status, 0);
	return status;
}

/*
 * Run fn(arg) in a child. Returns: true where it ends with EXIT_INPUT and one line on
 * stderr that contains @words.
 */
static inline bool dies(void (*fn)(const void *), const void *arg, const char *words)
{
	char line[4096];
	int status = child_says(fn, arg, 2, line, sizeof(line));
	size_t n = strlen(line);

	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_INPUT && n &&
	    strchr(line, '\n') == line + n - 1 && strstr(line, words))
		return true;
	diag("status %x, said: %s", status, line);
	return false;
}

#endif
