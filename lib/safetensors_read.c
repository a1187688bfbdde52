// SPDX-License-Identifier: MIT
/*
 * Reading safetensors files. The reader believes nothing: every number of the header is
 * checked before a tensor is handed out.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "safetensors_format.h"

/* @t is sorted by offset; @name in it points into @header */
struct st_file {
	int fd, nr;
	uint64_t size, data;	/* bytes of the file; where the tensors start */
	json_t *header;
	struct st_tensor *t;
};

static int pread_all(int fd, void *buf, size_t n, uint64_t from)
{
	uint8_t *p = buf;
	ssize_t got;

	while (n) {
		got = pread(fd, p, n, from);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got < 0 ? -errno : -EIO;
		p += got;
		from += got;
		n -= got;
	}
	return 0;
}

/* Length and JSON. Returns: NULL, or what is wrong. */
static char *read_header(struct st_file *f)
{
	uint8_t length[8];
	json_error_t e;
	uint64_t n = 0;
	bool object;
	char *text;
	int err;

	if (f->size < 8 || pread_all(f->fd, length, 8, 0))
		return xasprintf("%" PRIu64 " bytes are too short for a header", f->size);
	for (int i = 7; i >= 0; i--)
		n = n << 8 | length[i];
	if (n > HEADER_MAX || n > f->size - 8)
		return xasprintf("header length %" PRIu64 " is over the file's %" PRIu64
				 " bytes or the format's 100 MB", n, f->size);
	f->data = 8 + n;
	text = xmalloc(n + 1);
	err = pread_all(f->fd, text, n, 8);
	object = !err && n && *text == '{';
	if (object)
		f->header = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
	free(text);
	if (f->header)
		return NULL;
	if (err)
		return xasprintf("cannot read the header: %s", file_error(-err));
	return object ? xasprintf("header is no JSON: %s", e.text) :
	       xstrdup("header does not begin with '{'");
}

/* The bytes that dtype and shape ask for; false where they do not fit 63 bits. */
static bool tensor_bytes(const struct st_tensor *t, uint64_t *bytes)
{
	int64_t n = dtype_bytes(t->dtype);

	for (int i = 0; i < t->ndim; i++)
		if (__builtin_mul_overflow(n, t->shape[i], &n))
			return false;
	*bytes = n;
	return true;
}

/* "shape" and "data_offsets": the whole numbers of @a, none below 0. Returns: count or -1. */
static int read_ints(const json_t *a, int64_t *dst, size_t max)
{
	size_t n = json_array_size(a);

	if (!json_is_array(a) || n > max)
		return -1;
	for (size_t i = 0; i < n; i++) {
		const json_t *v = json_array_get(a, i);

		if (!json_is_integer(v) || json_integer_value(v) < 0)
			return -1;
		dst[i] = json_integer_value(v);
	}
	return n;
}

/* One header entry. Returns: NULL, or what is wrong with it. */
static const char *read_tensor(const struct st_file *f, const json_t *v, struct st_tensor *t)
{
	const char *dtype = json_string_value(json_object_get(v, "dtype"));
	int64_t span[2];
	uint64_t bytes;

	if (!json_is_object(v) || json_object_size(v) != 3)
		return "is not {dtype, shape, data_offsets}";
	if (!dtype || strlen(dtype) >= sizeof(t->dtype) || !dtype_bytes(dtype))
		return "has an unknown dtype";
	memcpy(t->dtype, dtype, strlen(dtype) + 1);
	t->ndim = read_ints(json_object_get(v, "shape"), t->shape, ARRAY_SIZE(t->shape));
	if (t->ndim < 0)
		return "has a shape that is not at most 8 whole numbers from 0 up";
	if (read_ints(json_object_get(v, "data_offsets"), span, 2) != 2)
		return "has data_offsets that are not two whole numbers from 0 up";
	if (span[0] > span[1])
		return "ends before its start";
	if ((uint64_t)span[1] > f->size - f->data)
		return "reaches beyond the end of the file";
	if (!tensor_bytes(t, &bytes) || bytes != (uint64_t)(span[1] - span[0]))
		return "has a shape that does not match its bytes";
	t->offset = f->data + span[0];
	t->bytes = bytes;
	return NULL;
}

/* By place; empty tensors before the one that starts there. */
static int by_offset(const void *a, const void *b)
{
	const struct st_tensor *x = a, *y = b;

	if (x->offset != y->offset)
		return x->offset < y->offset ? -1 : 1;
	return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* Each tensor must start where the one before it ends, the last end with the file. */
static char *check_layout(struct st_file *f)
{
	uint64_t end = f->data;

	qsort(f->t, f->nr, sizeof(*f->t), by_offset);
	for (int i = 0; i < f->nr; i++) {
		if (f->t[i].offset != end)
			return xasprintf("tensor %s %s", f->t[i].name, f->t[i].offset < end ?
					 "overlaps the one before it" : "has a hole before it");
		end += f->t[i].bytes;
	}
	if (end == f->size)
		return NULL;
	return xasprintf("%" PRIu64 " bytes follow %s", f->size - end,
			 f->nr ? f->t[f->nr - 1].name : "the header");
}

static char *check_meta(json_t *meta)
{
	const char *key;
	json_t *v;

	if (!json_is_object(meta))
		return xstrdup(META " is no object");
	json_object_foreach(meta, key, v)
		if (!json_is_string(v))
			return xasprintf(META " %s is no string", key);
	return NULL;
}

/* All entries. Returns: NULL, or what is wrong. */
static char *read_entries(struct st_file *f)
{
	const char *key, *why;
	char *bad;
	json_t *v;

	f->t = xcalloc(json_object_size(f->header) + 1, sizeof(*f->t));
	json_object_foreach(f->header, key, v) {
		if (!strcmp(key, META)) {
			bad = check_meta(v);
			if (bad)
				return bad;
			continue;
		}
		why = read_tensor(f, v, &f->t[f->nr]);
		if (why)
			return xasprintf("tensor %s %s", key, why);
		f->t[f->nr++].name = (char *)key;
	}
	return check_layout(f);
}

struct st_file *st_open(const char *path, char **err)
{
	struct st_file *f = xcalloc(1, sizeof(*f));
	char *bad = NULL;
	struct stat st;

	f->fd = file_open(path);
	if (f->fd < 0 || fstat(f->fd, &st) < 0) {
		bad = xasprintf("cannot be opened: %s", file_error(errno));
	} else {
		f->size = st.st_size;
		bad = read_header(f);
		if (!bad)
			bad = read_entries(f);
	}
	if (!bad)
		return f;
	/* names in the file may hold line breaks; the message is one line */
	for (char *p = bad; *p; p++)
		if ((unsigned char)*p < ' ')
			*p = '?';
	if (err)
		*err = bad;
	else
		free(bad);
	st_close(f);
	return NULL;
}

int st_count(const struct st_file *f)
{
	return f->nr;
}

const struct st_tensor *st_find(const struct st_file *f, const char *name)
{
	for (int i = 0; i < f->nr; i++)
		if (!strcmp(f->t[i].name, name))
			return &f->t[i];
	return NULL;
}

int st_read(struct st_file *f, const struct st_tensor *t, uint64_t from, void *buf, size_t n)
{
	if (from > t->bytes || n > t->bytes - from)
		return -EINVAL;
	return pread_all(f->fd, buf, n, t->offset + from);
}

void st_close(struct st_file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	json_decref(f->header);
	free(f->t);
	free(f);
}
