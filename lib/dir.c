// SPDX-License-Identifier: MIT
/* Folders, links and names. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util.h"

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
	err = fd_sync(fd);
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
