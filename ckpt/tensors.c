// SPDX-License-Identifier: MIT
/*
 * A model's tensors to and from safetensors, one by one, in pieces that fit a small
 * host buffer. Files hold what gradients are made of: weights are written from their
 * masters, and read into both.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "ckpt.h"
#include "safetensors.h"
#include "util.h"

/* Whether tensor @i is of a set. */
static bool has(const struct tensor_set *set, const struct model *m, int i)
{
	bool frozen = model_entry(m, i)->p->flags & FROZEN;

	return set->which == TENSORS_ALL || frozen == (set->which == TENSORS_FROZEN);
}

void tensors_of(const struct optim *o, struct tensor_set *weights,
		struct tensor_set buffers[OPTIM_BUFFERS])
{
	*weights = (struct tensor_set){ .prefix = "", .buf = o ? o->master : NULL,
					.weights = true };
	for (int i = 0; o && i < optim_rule.nr_buffers; i++)
		buffers[i] = (struct tensor_set){ .prefix = optim_rule.buffers[i],
						  .which = TENSORS_TRAINED, .buf = o->buf[i] };
}

static void shape_of(const struct param_entry *e, int64_t *shape)
{
	for (int i = 0; i < e->p->ndim; i++)
		shape[i] = e->p->dims[i];
}

/* ---- writing ----------------------------------------------------------------- */

void tensors_declare(struct st_writer *w, const struct model *m, const struct tensor_set *set)
{
	int64_t shape[8];

	for (int i = 0; i < model_nr_entries(m); i++) {
		const struct param_entry *e = model_entry(m, i);
		char *name;

		if (!has(set, m, i))
			continue;
		name = xasprintf("%s%s", set->prefix, e->name);
		shape_of(e, shape);
		st_declare(w, name, REAL_NAME, e->p->ndim, shape);
		free(name);
	}
}

static void get_piece(const struct model *m, const struct tensor_set *set,
		      const struct param_entry *e, size_t first, size_t n, grad_t *host)
{
	if (set->weights)
		model_get(m, set->buf, e, first, n, host);
	else
		arch_get(host, set->buf + e->offset + first, n * sizeof(*host));
}

/* Every tensor of a set, piece by piece, to a file or a digest. */
static int stream(struct st_writer *w, struct sha256 *sha, const struct model *m,
		  const struct tensor_set *set)
{
	grad_t *host = xmalloc(PIECE * sizeof(*host));
	int err = 0;

	for (int i = 0; i < model_nr_entries(m); i++) {
		const struct param_entry *e = model_entry(m, i);

		for (size_t at = 0, n; has(set, m, i) && at < e->numel && !err; at += n) {
			n = MIN(e->numel - at, (size_t)PIECE);
			get_piece(m, set, e, at, n, host);
			if (w)
				err = st_data(w, host, n * sizeof(*host));
			else
				sha256_update(sha, host, n * sizeof(*host));
		}
	}
	free(host);
	return err;
}

int tensors_stream(struct st_writer *w, const struct model *m, const struct tensor_set *set)
{
	return stream(w, NULL, m, set);
}

void tensors_sha256(const struct model *m, const struct optim *o, char hex[65])
{
	const struct tensor_set weights = { .prefix = "", .buf = o->master, .weights = true };
	struct sha256 sha;

	sha256_init(&sha);
	stream(NULL, &sha, m, &weights);
	sha256_final(&sha, hex);
}

int tensors_write(const char *folder, const struct model *m, const struct tensor_set *sets, int nr,
		  struct ckpt_file *f)
{
	char *path = xasprintf("%s/%s", folder, f->name);
	struct st_writer *w = st_create(path);
	int err = w ? 0 : -errno, closed;

	for (int s = 0; s < nr && w; s++)
		tensors_declare(w, m, &sets[s]);
	for (int s = 0; s < nr && !err; s++)
		err = tensors_stream(w, m, &sets[s]);
	if (w) {
		closed = st_finish(w, &f->bytes, f->sha256);
		err = err ? err : closed;
	}
	free(path);
	return err;
}

/* ---- reading ----------------------------------------------------------------- */

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
	int count = 0;

	for (int s = 0; s < nr; s++)
		for (int i = 0; i < model_nr_entries(m); i++) {
			const struct param_entry *e = model_entry(m, i);
			const char *what = has(&sets[s], m, i) ?
					   mismatch(find(f, sets[s].prefix, e), e) : NULL;

			count += has(&sets[s], m, i);
			if (what)
				return xasprintf("%s: tensor %s%s %s", path, sets[s].prefix,
						 e->name, what);
		}
	if (st_count(f) != count)
		return xasprintf("%s: %d tensors where this binary has %d", path, st_count(f), count);
	return NULL;
}

/* One tensor from the file to the device, piece by piece through @host. */
static int fill(struct st_file *f, struct model *m, const struct tensor_set *set,
		const struct param_entry *e, grad_t *host)
{
	const struct st_tensor *t = find(f, set->prefix, e);
	int err = 0;

	for (size_t at = 0, n; at < e->numel && !err; at += n) {
		n = MIN(e->numel - at, (size_t)PIECE);
		err = st_read(f, t, at * sizeof(*host), host, n * sizeof(*host));
		if (!err && set->weights)
			model_put(m, set->buf, e, at, n, host);
		else if (!err)
			arch_put(set->buf + e->offset + at, host, n * sizeof(*host));
	}
	return err;
}

static char *fill_all(struct st_file *f, const char *path, struct model *m,
		      const struct tensor_set *sets, int nr)
{
	grad_t *host = xmalloc(PIECE * sizeof(*host));
	char *wrong = NULL;

	for (int s = 0; s < nr; s++)
		for (int i = 0; i < model_nr_entries(m) && !wrong; i++) {
			const struct param_entry *e = model_entry(m, i);
			int err = has(&sets[s], m, i) ? fill(f, m, &sets[s], e, host) : 0;

			if (err)
				wrong = xasprintf("%s: tensor %s%s: %s", path, sets[s].prefix,
						  e->name, file_error(-err));
		}
	free(host);
	return wrong;
}

/* The file, checked; NULL with @wrong. */
static struct st_file *open_matching(const char *path, const struct model *m,
				     const struct tensor_set *sets, int nr, char **wrong)
{
	char *err = NULL;
	struct st_file *f = st_open(path, &err);

	*wrong = f ? match(f, path, m, sets, nr) : xasprintf("%s: %s", path, err);
	if (f && *wrong) {
		st_close(f);
		f = NULL;
	}
	free(err);
	return f;
}

char *tensors_match(const char *folder, const char *name, const struct model *m,
		    const struct tensor_set *sets, int nr)
{
	char *path = xasprintf("%s/%s", folder, name), *wrong;
	struct st_file *f = open_matching(path, m, sets, nr, &wrong);

	if (f)
		st_close(f);
	free(path);
	return wrong;
}

char *tensors_read(const char *folder, const char *name, struct model *m,
		   const struct tensor_set *sets, int nr)
{
	char *path = xasprintf("%s/%s", folder, name), *wrong;
	struct st_file *f = open_matching(path, m, sets, nr, &wrong);

	if (f) {
		wrong = fill_all(f, path, m, sets, nr);
		st_close(f);
	}
	free(path);
	return wrong;
}
