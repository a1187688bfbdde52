// SPDX-License-Identifier: MIT
/*
 * Flat device buffers to and from safetensors, tensor by tensor, in pieces that
 * fit a small host buffer.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "safetensors.h"
#include "train.h"

enum { PIECE = 1 << 20 };	/* elements on their way */

static void shape_of(const struct param_entry *e, int64_t *shape)
{
	for (int i = 0; i < e->p->ndim; i++)
		shape[i] = e->p->dims[i];
}

static void declare(struct st_writer *w, const struct model *m, const char *prefix)
{
	int64_t shape[8];

	for (int i = 0; i < m->nr_entries; i++) {
		char *name = xasprintf("%s%s", prefix, m->entries[i].name);

		shape_of(&m->entries[i], shape);
		st_declare(w, name, REAL_NAME, m->entries[i].p->ndim, shape);
		free(name);
	}
}

/* One tensor, piece by piece through @host [PIECE], to a file or a digest. */
static int stream(const struct param_entry *e, const grad_t *buf, grad_t *host,
		  struct st_writer *w, struct sha256 *sha)
{
	int err = 0;

	for (size_t done = 0, n; done < e->numel && !err; done += n) {
		n = MIN(e->numel - done, (size_t)PIECE);
		arch_get(host, buf + e->offset + done, n * sizeof(*host));
		if (w)
			err = st_data(w, host, n * sizeof(*host));
		else
			sha256_update(sha, host, n * sizeof(*host));
	}
	return err;
}

int tensors_write(const char *folder, const struct model *m, const struct tensor_set *sets, int nr,
		  struct ckpt_file *f)
{
	char *path = xasprintf("%s/%s", folder, f->name);
	struct st_writer *w = st_create(path);
	grad_t *host = xmalloc(PIECE * sizeof(*host));
	int err = w ? 0 : -errno, closed;

	for (int s = 0; s < nr && w; s++)
		declare(w, m, sets[s].prefix);
	for (int s = 0; s < nr; s++)
		for (int i = 0; i < m->nr_entries && !err; i++)
			err = stream(&m->entries[i], sets[s].buf, host, w, NULL);
	if (w) {
		closed = st_finish(w, &f->bytes, f->sha256);
		err = err ? err : closed;
	}
	free(host);
	free(path);
	return err;
}

void tensors_sha256(const struct model *m, char hex[65])
{
	grad_t *host = xmalloc(PIECE * sizeof(*host));
	struct sha256 sha;

	sha256_init(&sha);
	for (int i = 0; i < m->nr_entries; i++)
		stream(&m->entries[i], (const grad_t *)m->w, host, NULL, &sha);
	sha256_final(&sha, hex);
	free(host);
}

/* NULL, or what a file's tensor has that differs from ours. */
static const char *mismatch(const struct st_tensor *t, const struct param_entry *e)
{
	int64_t shape[8];

	if (!t)
		return "is missing";
	if (strcmp(t->dtype, REAL_NAME))
		return "is not " REAL_NAME;
	shape_of(e, shape);
	if (t->ndim != e->p->ndim || memcmp(t->shape, shape, t->ndim * sizeof(*shape)))
		return "has another shape";
	return NULL;
}

static const struct st_tensor *find(const struct st_file *f, const char *prefix,
				    const struct param_entry *e)
{
	char *name = xasprintf("%s%s", prefix, e->name);
	const struct st_tensor *t = st_find(f, name);

	free(name);
	return t;
}

static char *match(const struct st_file *f, const char *path, const struct model *m,
		   const struct tensor_set *sets, int nr)
{
	for (int s = 0; s < nr; s++)
		for (int i = 0; i < m->nr_entries; i++) {
			const struct param_entry *e = &m->entries[i];
			const char *what = mismatch(find(f, sets[s].prefix, e), e);

			if (what)
				return xasprintf("%s: tensor %s%s %s", path, sets[s].prefix,
						 e->name, what);
		}
	if (st_count(f) != nr * m->nr_entries)
		return xasprintf("%s: %d tensors where this binary has %d", path, st_count(f),
				 nr * m->nr_entries);
	return NULL;
}

/* One tensor from the file into a device buffer. */
static int fill(struct st_file *f, const struct st_tensor *t, const struct param_entry *e,
		grad_t *buf, grad_t *host)
{
	int err = 0;

	for (size_t done = 0, n; done < e->numel && !err; done += n) {
		n = MIN(e->numel - done, (size_t)PIECE);
		err = st_read(f, t, done * sizeof(*host), host, n * sizeof(*host));
		if (!err)
			arch_put(buf + e->offset + done, host, n * sizeof(*host));
	}
	return err;
}

static char *fill_all(struct st_file *f, const char *path, const struct model *m,
		      const struct tensor_set *sets, int nr)
{
	grad_t *host = xmalloc(PIECE * sizeof(*host));
	char *wrong = NULL;

	for (int s = 0; s < nr; s++)
		for (int i = 0; i < m->nr_entries && !wrong; i++) {
			const struct param_entry *e = &m->entries[i];
			int err = fill(f, find(f, sets[s].prefix, e), e, sets[s].buf, host);

			if (err)
				wrong = xasprintf("%s: tensor %s%s: %s", path, sets[s].prefix,
						  e->name, strerror(-err));
		}
	free(host);
	return wrong;
}

static char *open_and(bool read, const char *folder, const char *name, const struct model *m,
		      const struct tensor_set *sets, int nr)
{
	char *path = xasprintf("%s/%s", folder, name), *err = NULL, *wrong;
	struct st_file *f = st_open(path, &err);

	if (!f) {
		wrong = xasprintf("%s: %s", path, err);
	} else {
		wrong = match(f, path, m, sets, nr);
		if (!wrong && read)
			wrong = fill_all(f, path, m, sets, nr);
		st_close(f);
	}
	free(err);
	free(path);
	return wrong;
}

char *tensors_match(const char *folder, const char *name, const struct model *m,
		    const struct tensor_set *sets, int nr)
{
	return open_and(false, folder, name, m, sets, nr);
}

char *tensors_read(const char *folder, const char *name, const struct model *m,
		   const struct tensor_set *sets, int nr)
{
	return open_and(true, folder, name, m, sets, nr);
}
