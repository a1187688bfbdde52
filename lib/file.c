// SPDX-License-Identifier: MIT
/*
 * The file layer: every file, folder and link that the program writes is made here.
 * Errors come back as -errno; the caller knows what to tell the user.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
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
};

/* ---- reading ------------------------------------------------------------- */

/* zlib's error of a stream, as errno */
static int gz_errno(gzFile gz)
{
	int code;

	gzerror(gz, &code);
	if (code == Z_ERRNO)
		return errno ? errno : EIO;
	return code == Z_MEM_ERROR ? ENOMEM : EBADMSG;
}

/* All that is left of @gz, 0-terminated; NULL with errno. @hint: expected bytes. */
static uint8_t *gz_read_all(gzFile gz, size_t hint, size_t *size)
{
	size_t cap = MAX(hint, (size_t)4096) + 1, n = 0;
	uint8_t *buf = xmalloc(cap);
	int got, code;

	while ((got = gzread(gz, buf + n, MIN(cap - n - 1, (size_t)1 << 30))) > 0) {
		n += got;
		if (n + 1 == cap)
			buf = xrealloc(buf, cap *= 2);
	}
	/* a stream that ends too early is only told by gzerror() */
	gzerror(gz, &code);
	if (got < 0 || (code != Z_OK && code != Z_STREAM_END)) {
		errno = gz_errno(gz);
		free(buf);
		return NULL;
	}
	buf[n] = 0;
	*size = n;
	return buf;
}

uint8_t *file_read(const char *path, size_t *size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), err;
	uint8_t *buf = NULL;
	struct stat st;
	gzFile gz;

	if (fd < 0)
		return NULL;
	if (fstat(fd, &st) < 0 || S_ISDIR(st.st_mode)) {
		err = S_ISDIR(st.st_mode) ? EISDIR : errno;
		goto out_close;
	}
	gz = gzdopen(fd, "rb");
	if (!gz) {
		err = ENOMEM;
		goto out_close;
	}
	gzbuffer(gz, 1 << 18);
	errno = 0;
	buf = gz_read_all(gz, st.st_size, size);
	err = errno;
	gzclose_r(gz);
	errno = err;
	return buf;

out_close:
	close(fd);
	errno = err;
	return NULL;
}

/* ---- writing ------------------------------------------------------------- */

static struct file_writer *writer_open(const char *path, const char *partial, int flags)
{
	int fd = open(partial ? partial : path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0666);
	struct file_writer *f;

	if (fd < 0)
		return NULL;
	f = xcalloc(1, sizeof(*f));
	f->fd = fd;
	f->path = xstrdup(path);
	f->partial = partial ? xstrdup(partial) : NULL;
	sha256_init(&f->sha);
	return f;
}

struct file_writer *file_create(const char *path)
{
	struct file_writer *f;
	struct stat st;
	char *partial;
	int err;

	if (!stat(path, &st) && !S_ISREG(st.st_mode))
		return writer_open(path, NULL, O_TRUNC);
	partial = xasprintf("%s.partial", path);
	f = writer_open(path, partial, O_TRUNC);
	err = errno;
	free(partial);
	errno = err;
	return f;
}

struct file_writer *file_append(const char *path)
{
	struct file_writer *f = writer_open(path, NULL, O_APPEND);
	struct stat st;

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
	free(f->partial);
	free(f->path);
	free(f);
	return err;
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
static int make_one(const char *path)
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
		err = make_one(copy);
		*p = '/';
	}
	if (!err)
		err = make_one(copy);
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
