// SPDX-License-Identifier: MIT
/*
 * The file layer: every file that the program writes is made here, every folder and link in dir.c.
 * Errors come back as -errno; the caller knows what to tell the user.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util.h"

/*
 * @path is the final name, @partial the name while writing; NULL where the file is
 * written under its own name. @err is the first error.
 */
struct file_writer {
	int fd, err;
	uint64_t size;
	char *path, *partial;
	struct sha256 sha;
	struct file_writer *next;	/* of those that have a @partial */
};

static struct file_writer *unfinished;

static void writer_free(struct file_writer *f)
{
	struct file_writer **at = &unfinished;

	while (*at && *at != f)
		at = &(*at)->next;
	if (*at)
		*at = f->next;
	free(f->partial);
	free(f->path);
	free(f);
}

/*
 * All memory first: no file is left behind where there is none. A pipe that nobody
 * reads is an error (ENXIO), not something to wait for.
 */
static struct file_writer *writer_open(const char *path, char *partial, int flags)
{
	struct file_writer *f = xcalloc(1, sizeof(*f));
	int err;

	f->path = xstrdup(path);
	f->partial = partial;
	sha256_init(&f->sha);
	f->fd = open(partial ? partial : path,
		     O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK | flags, 0666);
	if (f->fd < 0) {
		err = errno;
		writer_free(f);
		errno = err;
		return NULL;
	}
	fcntl(f->fd, F_SETFL, flags & O_APPEND);	/* writing may wait */
	if (partial) {
		f->next = unfinished;
		unfinished = f;
	}
	return f;
}

struct file_writer *file_create(const char *path)
{
	struct stat st;

	if (!stat(path, &st) && !S_ISREG(st.st_mode))
		return writer_open(path, NULL, O_TRUNC);
	return writer_open(path, xasprintf("%s.partial", path), O_TRUNC);
}

struct file_writer *file_append(const char *path)
{
	struct file_writer *f;
	struct stat st;

	if (!stat(path, &st) && file_kind(st.st_mode)) {
		errno = file_kind(st.st_mode);
		return NULL;
	}
	f = writer_open(path, NULL, O_APPEND);
	if (f && !fstat(f->fd, &st))
		f->size = st.st_size;
	return f;
}

int file_write(struct file_writer *f, const void *buf, size_t n)
{
	const uint8_t *p = buf;
	ssize_t put;

	while (n && !f->err) {
		put = write(f->fd, p, n);
		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0) {
			f->err = put < 0 ? -errno : -EIO;
			break;
		}
		sha256_update(&f->sha, p, put);
		f->size += put;
		p += put;
		n -= put;
	}
	return f->err;
}

uint64_t file_size(const struct file_writer *f)
{
	return f->size;
}

void file_sha256(const struct file_writer *f, char hex[65])
{
	struct sha256 copy = f->sha;

	sha256_final(&copy, hex);
}

/* What cannot be synced says EINVAL. */
int fd_sync(int fd)
{
	return fsync(fd) < 0 && errno != EINVAL && errno != EROFS ? -errno : 0;
}

int file_sync(struct file_writer *f)
{
	if (!f->err)
		f->err = fd_sync(f->fd);
	return f->err;
}

int file_finish(struct file_writer *f)
{
	int err = file_sync(f);

	if (close(f->fd) < 0 && !err)
		err = -errno;
	if (f->partial && !err && rename(f->partial, f->path) < 0)
		err = -errno;
	if (f->partial && err)
		unlink(f->partial);
	writer_free(f);
	return err;
}

void files_drop(void)
{
	for (struct file_writer *f = unfinished; f; f = f->next)
		unlink(f->partial);
	unfinished = NULL;
}

int file_put(const char *path, const void *buf, size_t n)
{
	struct file_writer *f = file_create(path);

	if (!f)
		return -errno;
	file_write(f, buf, n);
	return file_finish(f);
}

void file_cancel(struct file_writer *f)
{
	f->err = -ECANCELED;
	file_finish(f);
}

int file_truncate(const char *path, uint64_t size)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), err;

	if (fd < 0)
		return -errno;
	err = ftruncate(fd, size) < 0 ? -errno : fd_sync(fd);
	close(fd);
	return err;
}
