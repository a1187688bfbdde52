// SPDX-License-Identifier: MIT
/*
 * The file layer: every file, folder and link that the program writes is made here.
 * Errors come back as -errno; the caller knows what to tell the user.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <zlib.h>

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

/* ---- reading ------------------------------------------------------------- */

/* Kinds of file that are refused, as errno values that no open() gives. */
static int kind_errno(mode_t mode)
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
	err = kind_errno(st.st_mode);
	fd = err ? -1 : open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd >= 0 && (fstat(fd, &st) < 0 || kind_errno(st.st_mode))) {
		err = kind_errno(st.st_mode);
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

/* ---- writing ------------------------------------------------------------- */

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

	if (!stat(path, &st) && kind_errno(st.st_mode)) {
		errno = kind_errno(st.st_mode);
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

/* What cannot be synced (a terminal, a pipe) says EINVAL: nothing to sync. */
static int sync_fd(int fd)
{
	return fsync(fd) < 0 && errno != EINVAL && errno != EROFS ? -errno : 0;
}

int file_sync(struct file_writer *f)
{
	if (!f->err)
		f->err = sync_fd(f->fd);
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
	err = ftruncate(fd, size) < 0 ? -errno : sync_fd(fd);
	close(fd);
	return err;
}

/* ---- folders and names --------------------------------------------------- */

static bool is_dir(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISDIR(st.st_mode);
}

/* One level; a folder that is there already is fine. */
int dir_make_one(const char *path)
{
	int err = mkdir(path, 0777) < 0 ? -errno : 0;

	if (err && is_dir(path))
		return 0;
	return err == -EEXIST ? -ENOTDIR : err;
}

int dir_make(const char *path)
{
	char *copy = xstrdup(path), *p = copy;
	int err = *copy ? 0 : -ENOENT;

	while (!err && (p = strchr(p + 1, '/'))) {
		*p = 0;
		err = dir_make_one(copy);
		*p = '/';
	}
	if (!err)
		err = dir_make_one(copy);
	free(copy);
	return err;
}

int dir_sync(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), err;

	if (fd < 0)
		return -errno;
	err = sync_fd(fd);
	close(fd);
	return err;
}

static int remove_at(int parent, const char *name);

/* Empty the folder @fd, which is closed. */
static int remove_entries(int fd)
{
	DIR *d = fdopendir(fd);
	struct dirent *e;
	int err = 0;

	if (!d) {
		err = -errno;
		close(fd);
		return err;
	}
	while (!err && (errno = 0, e = readdir(d)))
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			err = remove_at(dirfd(d), e->d_name);
	if (!err && errno)
		err = -errno;
	closedir(d);
	return err;
}

/* O_NOFOLLOW: a link to a folder is removed, not what it points to. */
static int remove_at(int parent, const char *name)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), err;

	if (fd < 0 && errno != ENOTDIR && errno != ELOOP)
		return -errno;
	if (fd < 0)
		return unlinkat(parent, name, 0) < 0 ? -errno : 0;
	err = remove_entries(fd);
	if (err)
		return err;
	return unlinkat(parent, name, AT_REMOVEDIR) < 0 ? -errno : 0;
}

int dir_remove(const char *path)
{
	return remove_at(AT_FDCWD, path);
}

int path_rename(const char *from, const char *to)
{
	return rename(from, to) < 0 ? -errno : 0;
}

int link_replace(const char *target, const char *path)
{
	char *partial = xasprintf("%s.partial", path);
	int err = 0;

	if (unlink(partial) < 0 && errno != ENOENT)
		err = -errno;
	if (!err && symlink(target, partial) < 0)
		err = -errno;
	if (!err && rename(partial, path) < 0) {
		err = -errno;
		unlink(partial);
	}
	free(partial);
	return err;
}
