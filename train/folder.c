// SPDX-License-Identifier: MIT
/*
 * The folder of a run: one process at a time, and none that was moved away. The lock is
 * the kernel's (flock) on the folder itself, so that it moves with it and goes with the
 * process.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "options.h"
#include "train.h"
#include "util.h"

/* Whether @dir still names the folder that was opened as @fd. */
static bool same_folder(int fd, const char *dir)
{
	struct stat opened, named;

	return !fstat(fd, &opened) && !stat(dir, &named) && opened.st_dev == named.st_dev &&
	       opened.st_ino == named.st_ino;
}

void folder_check(const struct run *r)
{
	char link[32], now_at[PATH_MAX];
	ssize_t n;

	if (r->folder <= 0 || same_folder(r->folder, r->dir))
		return;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", r->folder);
	n = readlink(link, now_at, sizeof(now_at) - 1);
	now_at[MAX(n, 0)] = 0;
	die("%s was moved or replaced under this run: stopped after step %" PRId64 ", its files "
	    "are %s; move them back and run again", r->dir, r->st.step,
	    n > 0 ? now_at : "somewhere else");
}

/* The folder @dir, for this process alone while the descriptor is open. */
static int lock_folder(const char *dir)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		die("cannot open %s: %s; give another folder with %s", dir, strerror(errno),
		    flag_words("out"));
	if (flock(fd, LOCK_EX | LOCK_NB) < 0 && errno != EWOULDBLOCK)
		die("cannot lock %s: %s; give a folder of another file system with %s", dir,
		    strerror(errno), flag_words("out"));
	/* locked, but already moved away by who held it before */
	if (flock(fd, LOCK_EX | LOCK_NB) < 0 || !same_folder(fd, dir))
		die("%s is in use by another run; wait for it or give another %s", dir,
		    flag_words("out"));
	return fd;
}

/* --restart: the old run keeps everything under the first free name. */
static void move_aside(const char *dir)
{
	int fd = lock_folder(dir), err;
	char *to = NULL;

	for (int n = 1; !to || !access(to, F_OK); n++) {
		free(to);
		to = xasprintf("%s.old-%d", dir, n);
	}
	err = path_rename(dir, to);
	if (err)
		die("cannot move %s to %s: %s", dir, to, strerror(-err));
	log_line("restart  the old run is now %s", to);
	free(to);
	close(fd);
}

int folder_open(const char *dir, bool restart)
{
	char *probe = xasprintf("%s/.tmp-ckpt-probe", dir);
	int err, fd = -1;

	if (restart && !access(dir, F_OK))
		move_aside(dir);
	err = dir_make(dir);
	if (!err) {
		fd = lock_folder(dir);
		err = dir_make(probe);
	}
	if (!err)
		err = dir_remove(probe);
	if (err)
		die("cannot write to %s: %s; give another folder with %s", dir, strerror(-err),
		    flag_words("out"));
	ckpt_recover(dir);
	free(probe);
	return fd;
}
