// SPDX-License-Identifier: MIT
/*
 * Writing safetensors files: 8-byte little-endian header length, JSON header, tensor
 * bytes as a stream. Tensors are declared first, so the header is known before them.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "safetensors_format.h"

/* @declared: tensor bytes of the header; @put: those that came */
struct st_writer {
	struct file_writer *f;
	json_t *header;
	uint64_t declared, put;
	bool started;
	int err;
};

struct st_writer *st_create(const char *path)
{
	struct file_writer *f = file_create(path);
	struct st_writer *w;

	if (!f)
		return NULL;
	w = xcalloc(1, sizeof(*w));
	w->f = f;
	w->header = json_object();
	return w;
}

void st_meta(struct st_writer *w, const char *key, const char *value)
{
	json_t *meta = json_object_get(w->header, META);

	if (!meta) {
		meta = json_object();
		json_object_set_new(w->header, META, meta);
	}
	if (w->started || json_object_set_new(meta, key, json_string(value)))
		die_bug("safetensors metadata %s: too late, or no UTF-8", key);
}

void st_declare(struct st_writer *w, const char *name, const char *dtype, int ndim,
		const int64_t *shape)
{
	json_t *dims = json_array();
	uint64_t bytes = dtype_bytes(dtype);

	for (int i = 0; i < ndim; i++) {
		json_array_append_new(dims, json_integer(shape[i]));
		bytes *= shape[i];
	}
	if (w->started || !dtype_bytes(dtype) || json_object_get(w->header, name) ||
	    json_object_set_new(w->header, name,
				json_pack("{s:s,s:o,s:[I,I]}", "dtype", dtype, "shape", dims,
					  "data_offsets", (json_int_t)w->declared,
					  (json_int_t)(w->declared + bytes))))
		die_bug("safetensors tensor %s (%s): twice, too late, or a bad name", name, dtype);
	w->declared += bytes;
}

static void put_le64(uint8_t p[8], uint64_t v)
{
	for (int i = 0; i < 8; i++)
		p[i] = v >> 8 * i;
}

/* Length and JSON, padded with spaces so that the tensors start on 8 bytes. */
static int write_header(struct st_writer *w)
{
	char *text = json_dumps(w->header, JSON_COMPACT | JSON_PRESERVE_ORDER);
	size_t n = strlen(text), padded = (n + 7) / 8 * 8;
	uint8_t length[8];

	w->started = true;
	text = xrealloc(text, padded + 1);
	memset(text + n, ' ', padded - n);
	put_le64(length, padded);
	w->err = padded > HEADER_MAX ? -EFBIG : file_write(w->f, length, 8);
	if (!w->err)
		w->err = file_write(w->f, text, padded);
	free(text);
	return w->err;
}

int st_data(struct st_writer *w, const void *buf, size_t n)
{
	if (!w->started)
		write_header(w);
	if (!w->err && n > w->declared - w->put)
		w->err = -EINVAL;
	if (!w->err)
		w->err = file_write(w->f, buf, n);
	w->put += n;
	return w->err;
}

int st_finish(struct st_writer *w, uint64_t *size, char hex[65])
{
	int err = st_data(w, NULL, 0);

	if (!err && w->put != w->declared)
		err = -EINVAL;
	if (!err) {
		if (size)
			*size = file_size(w->f);
		if (hex)
			file_sha256(w->f, hex);
		err = file_finish(w->f);
	} else {
		file_cancel(w->f);
	}
	json_decref(w->header);
	free(w);
	return err;
}
