// SPDX-License-Identifier: MIT
/*
 * A checkpoint of another configuration, made from one: given weights, no buffers of an
 * optimizer, the state of the original. It can be used, but not trained further.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt.h"
#include "safetensors.h"
#include "util.h"

static int write_tensors(const char *folder, struct ckpt_file *f, const struct ckpt_tensor *t,
			 int nr)
{
	char *path = xasprintf("%s/%s", folder, f->name);
	struct st_writer *w = st_create(path);
	int err = w ? 0 : -errno, closed;

	for (int i = 0; i < nr && w; i++)
		st_declare(w, t[i].name, REAL_NAME, t[i].ndim, t[i].shape);
	for (int i = 0; i < nr && !err; i++) {
		size_t n = 1;

		for (int j = 0; j < t[i].ndim; j++)
			n *= t[i].shape[j];
		err = st_data(w, t[i].x, n * sizeof(*t[i].x));
	}
	if (w) {
		closed = st_finish(w, &f->bytes, f->sha256);
		err = err ? err : closed;
	}
	free(path);
	return err;
}

static int write_files(const char *folder, const struct ckpt_state *st, const char *config,
		       const struct ckpt_tensor *t, int nr)
{
	struct ckpt_file files[CKPT_FILES] = {
		{ .name = "model.safetensors" }, { .name = "optim.safetensors" },
		{ .name = "state.json" },
	};
	int err = write_tensors(folder, &files[0], t, nr);

	if (!err)
		err = write_tensors(folder, &files[1], NULL, 0);
	if (!err)
		err = state_write(folder, st, &files[2]);
	if (!err)
		err = manifest_write(folder, files, st, config);
	return err;
}

void ckpt_derive(const char *from, const char *folder, const char *config,
		 const struct ckpt_tensor *t, int nr, const char *fragment)
{
	char *tmp = xasprintf("%s.partial", folder), *own = xasprintf("%s/absorbed.config", tmp);
	char *found = ckpt_find(from), *was, *wrong;
	struct ckpt_state st = { 0 };
	int err;

	wrong = manifest_check(found, &was, &st);
	if (!wrong)
		wrong = state_read(found, &st);
	if (wrong)
		die("damaged checkpoint: %s; choose another checkpoint folder", wrong);
	if (!access(folder, F_OK))
		die("%s exists; give another --checkpoint-out", folder);
	err = access(tmp, F_OK) ? 0 : dir_remove(tmp);	/* of a call that was killed */
	if (!err)
		err = dir_make_one(tmp);
	if (!err) {
		die_removes(tmp);
		err = write_files(tmp, &st, config, t, nr);
	}
	if (!err)
		err = file_put(own, fragment, strlen(fragment));
	if (!err)
		err = dir_sync(tmp);
	if (!err)
		err = path_rename(tmp, folder);
	if (err)
		die("cannot write %s: %s; make room or give another --checkpoint-out", folder,
		    file_error(-err));
	die_removes(NULL);
	free(was);
	free(found);
	free(own);
	free(tmp);
}
