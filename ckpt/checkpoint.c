// SPDX-License-Identifier: MIT
/*
 * Writing checkpoints so that a fault at any moment leaves the last one whole:
 *
 *   .tmp-ckpt-000200/    written and synced file by file, manifest last
 *   ckpt-000200/         by rename; what had the name is first .old-ckpt-000200/
 *   best                 a link, replaced by rename
 *
 * Only after the new one is on the disk are older ones deleted, never the one that
 * "best" means. A run killed before the link is replaced does it when it resumes.
 */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt.h"
#include "options.h"
#include "util.h"

#define CKPT_FORMAT "ckpt-%06" PRId64

char *ckpt_folder(const char *dir, int64_t step)
{
	return xasprintf("%s/" CKPT_FORMAT, dir, step);
}

/* The step that a folder's name says, -1 for other names. */
static int64_t step_of(const char *name)
{
	char again[32];
	int64_t step;

	if (sscanf(name, "ckpt-%" SCNd64, &step) != 1 || step < 0)
		return -1;
	snprintf(again, sizeof(again), CKPT_FORMAT, step);
	return strcmp(again, name) ? -1 : step;
}

static int newest_first(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x < y) - (x > y);
}

int ckpt_list(const char *dir, int64_t **steps)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	int nr = 0;

	*steps = NULL;
	if (!d && errno != ENOENT && errno != ENOTDIR)
		die("cannot list %s: %s", dir, strerror(errno));
	while (d && (e = readdir(d))) {
		int64_t step = step_of(e->d_name);

		if (step < 0)
			continue;
		*steps = xrealloc(*steps, (nr + 1) * sizeof(**steps));
		(*steps)[nr++] = step;
	}
	if (d)
		closedir(d);
	if (nr)
		qsort(*steps, nr, sizeof(**steps), newest_first);
	return nr;
}

static void must(int err, const char *what, const char *path)
{
	if (err == -ENOENT)
		die("cannot %s %s: its folder was moved or removed under this run; move it back "
		    "and run again", what, path);
	if (err)
		die("cannot %s %s: %s; earlier checkpoints are intact: make room or give "
		    "another %s, then run again", what, path, file_error(-err),
		    flag_words("out"));
}

/* A leftover: an old target whose new one never came goes back, the rest goes. */
static void recover_one(const char *dir, const char *name)
{
	char *path = xasprintf("%s/%s", dir, name), *target = NULL;

	if (!strncmp(name, ".old-ckpt-", 10)) {
		target = xasprintf("%s/%s", dir, name + 5);
		if (access(target, F_OK))
			must(path_rename(path, target), "restore", target);
		else
			must(dir_remove(path), "remove", path);
	} else if (!strncmp(name, ".tmp-ckpt-", 10) || !strcmp(name, "best.partial") ||
		   !strcmp(name, "result.json.partial")) {
		must(dir_remove(path), "remove", path);
	}
	free(target);
	free(path);
}

void ckpt_recover(const char *dir)
{
	struct dirent **names;
	int nr = scandir(dir, &names, NULL, alphasort);

	must(nr < 0 ? -errno : 0, "list", dir);
	for (int i = 0; i < nr; i++) {
		recover_one(dir, names[i]->d_name);
		free(names[i]);
	}
	free(names);
}

static int write_files(const char *folder, const struct model *m, const struct optim *o,
		       const struct ckpt_state *st)
{
	struct ckpt_file files[CKPT_FILES] = {
		{ .name = "model.safetensors" }, { .name = "optim.safetensors" },
		{ .name = "state.json" },
	};
	struct tensor_set weights, buffers[OPTIM_BUFFERS];
	int err;

	tensors_of(o, &weights, buffers);
	err = tensors_write(folder, m, &weights, 1, &files[0]);
	if (!err)
		err = tensors_write(folder, m, buffers, optim_rule.nr_buffers, &files[1]);
	if (!err)
		err = state_write(folder, st, &files[2]);
	if (!err)
		err = manifest_write(folder, files, st, config_text());
	if (!err)
		err = dir_sync(folder);
	return err;
}

/* Move a complete temporary folder to its name. */
static int commit(const char *dir, const char *tmp, const char *folder, const char *old)
{
	int err;

	if (!access(folder, F_OK)) {
		err = path_rename(folder, old);
		if (err)
			return err;
	}
	err = path_rename(tmp, folder);
	if (!err)
		err = dir_sync(dir);
	if (!err && !access(old, F_OK))
		err = dir_remove(old);
	return err;
}

void ckpt_link_best(const char *dir, int64_t step)
{
	char *path = xasprintf("%s/best", dir), *target = ckpt_folder(dir, step);

	if (step >= 0 && !access(target, F_OK)) {
		must(link_replace(strrchr(target, '/') + 1, path), "link", path);
		must(dir_sync(dir), "sync", dir);
	}
	free(target);
	free(path);
}

/* Keep @step and the newest before it. What is newer than that is damaged: it stays. */
static void prune(const char *dir, int64_t step, int64_t best)
{
	int64_t *steps;
	int nr = ckpt_list(dir, &steps), kept = 0;

	for (int i = 0; i < nr; i++) {
		char *folder = ckpt_folder(dir, steps[i]);

		if (steps[i] <= step && kept++ >= CONFIG_CHECKPOINT_KEEP && steps[i] != best)
			must(dir_remove(folder), "remove", folder);
		free(folder);
	}
	free(steps);
}

void ckpt_save(const char *dir, const struct model *m, const struct optim *o,
	       const struct ckpt_state *st)
{
	char *folder = ckpt_folder(dir, st->step), *name = strrchr(folder, '/') + 1;
	char *tmp = xasprintf("%s/.tmp-%s", dir, name), *old = xasprintf("%s/.old-%s", dir, name);
	int err;

	die_removes(tmp);
	err = dir_make_one(tmp);
	if (!err)
		err = write_files(tmp, m, o, st);
	must(err, "write", folder);
	die_removes(NULL);
	must(commit(dir, tmp, folder, old), "write", folder);
	if (st->best_step == st->step)
		ckpt_link_best(dir, st->step);
	prune(dir, st->step, st->best_step);
	free(old);
	free(tmp);
	free(folder);
}
