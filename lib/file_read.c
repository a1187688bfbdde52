// SPDX-License-Identifier: MIT
/* Files that are read, as they are or unpacked. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <zlib.h>

#include "util.h"

int file_kind(unsigned int mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG: return 0;
	case S_IFDIR: return EISDIR;
	case S_IFIFO: return ESPIPE;
	case S_IFSOCK: return ENOTSOCK;
	default: return ENOTBLK;
	}
}

const char *file_error(int err)
{
	switch (err) {
	case EISDIR: return "is a folder, not a file";
	case ESPIPE: return "is a pipe, not a file";
	case ENOTSOCK: return "is a socket, not a file";
	case ENOTBLK: return "is a device, not a file";
	case EFBIG: return "File too large: the limit of a file (ulimit -f)";
	case EBADMSG: return "damaged or cut off gzip data, or other bytes behind it";
	default: return strerror(err);
	}
}

/* Looked at before it is opened: opening a device may do something. */
int file_open(const char *path)
{
	struct stat st;
	int fd, err;

	if (stat(path, &st) < 0)
		return -1;
	err = file_kind(st.st_mode);
	fd = err ? -1 : open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd >= 0 && (fstat(fd, &st) < 0 || file_kind(st.st_mode))) {
		err = file_kind(st.st_mode);
		close(fd);
		fd = -1;
	}
	if (err)
		errno = err;
	return fd;
}

/* Up to @n bytes, fewer at the end of the file; or -errno. */
static ssize_t read_full(int fd, void *buf, size_t n)
{
	size_t at = 0;
	ssize_t got;

	while (at < n) {
		got = read(fd, (char *)buf + at, n - at);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (!got)
			break;
		at += got;
	}
	return at;
}

int file_peek(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), n;

	if (fd < 0)
		return -errno;
	n = read_full(fd, buf, size - 1);
	close(fd);
	buf[MAX(n, 0)] = 0;
	return n;
}

/* The rest of @fd, which may grow meanwhile; @hint: expected bytes. NULL with errno */
static uint8_t *read_all(int fd, size_t hint, size_t *size)
{
	size_t cap = hint + 2, n = 0;
	uint8_t *buf = xmalloc(cap);
	ssize_t got;

	while ((got = read_full(fd, buf + n, cap - n - 1)) > 0) {
		n += got;
		if (n + 1 == cap)
			buf = xrealloc(buf, cap *= 2);
	}
	if (got < 0) {
		free(buf);
		errno = -got;
		return NULL;
	}
	buf[n] = 0;
	*size = n;
	return buf;
}

static bool is_gzip(const uint8_t *p, size_t n)
{
	return n > 2 && p[0] == 0x1f && p[1] == 0x8b && p[2] == 8;
}

/* One member from z->next_in on, behind the *n bytes of *buf. Returns: 0 or errno. */
static int gunzip_member(z_stream *z, uint8_t **buf, size_t *cap, size_t *n)
{
	int code;

	do {
		if (*n + 1 == *cap)
			*buf = xrealloc(*buf, *cap *= 2);
		z->next_out = *buf + *n;
		z->avail_out = MIN(*cap - *n - 1, (size_t)1 << 30);
		code = inflate(z, Z_NO_FLUSH);
		*n = z->next_out - *buf;
	} while (code == Z_OK || (code == Z_BUF_ERROR && !z->avail_out));
	return code == Z_STREAM_END ? 0 : code == Z_MEM_ERROR ? ENOMEM : EBADMSG;
}

/*
 * A file of gzip members, each with its checksum, and nothing behind the last one.
 * zlib's own reader takes what follows a whole member, a damaged one too, for the end.
 */
static uint8_t *gunzip(const uint8_t *raw, size_t nr, size_t *size)
{
	size_t cap = MAX(4 * nr, (size_t)4096), n = 0, at = 0;
	uint8_t *buf = xmalloc(cap);
	z_stream z = { 0 };
	/* 16: gzip's header, not zlib's */
	int err = inflateInit2(&z, 16 + MAX_WBITS) == Z_OK ? 0 : ENOMEM;

	while (!err && at < nr) {
		z.next_in = (Bytef *)raw + at;
		z.avail_in = MIN(nr - at, (size_t)UINT_MAX);
		inflateReset(&z);
		err = is_gzip(raw + at, nr - at) ? gunzip_member(&z, &buf, &cap, &n) : EBADMSG;
		at = z.next_in - raw;
	}
	inflateEnd(&z);
	if (err) {
		free(buf);
		errno = err;
		return NULL;
	}
	buf[n] = 0;
	*size = n;
	return buf;
}

uint8_t *file_read(const char *path, size_t *size)
{
	int fd = file_open(path), err;
	uint8_t *raw, *text;
	struct stat st;
	size_t n = 0;

	if (fd < 0)
		return NULL;
	raw = read_all(fd, fstat(fd, &st) < 0 ? 0 : st.st_size, &n);
	err = errno;
	close(fd);
	errno = err;
	if (!raw || !is_gzip(raw, n)) {
		*size = n;
		return raw;
	}
	text = gunzip(raw, n, size);
	err = errno;
	free(raw);
	errno = err;
	return text;
}
