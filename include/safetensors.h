/* SPDX-License-Identifier: MIT */
/**
 * DOC: safetensors files
 *
 * 8-byte little-endian header length, JSON, tensors without holes or overlap.
 */
#ifndef TENON_SAFETENSORS_H
#define TENON_SAFETENSORS_H

#include "util.h"

/**
 * struct st_tensor - one entry of a header
 * @name: tensor name
 * @dtype: "F32", "F64", "I32", "I64", ...
 * @ndim: dimensions
 * @shape: their sizes
 * @offset: first byte, from the start of the file
 * @bytes: length
 */
struct st_tensor {
	char *name;
	char dtype[8];
	int ndim;
	int64_t shape[8];
	uint64_t offset, bytes;
};

/* ---- writing: declare all tensors, then stream their bytes in that order ---- */
struct st_writer;
struct st_writer *st_create(const char *path);	/* NULL with errno */
/** st_meta() - one __metadata__ string */
void st_meta(struct st_writer *w, const char *key, const char *value);
/** st_declare() - next tensor */
void st_declare(struct st_writer *w, const char *name, const char *dtype, int ndim,
		const int64_t *shape);
/** st_data() - next bytes; the header is written before the first. 0 or -errno */
int st_data(struct st_writer *w, const void *buf, size_t n);
/**
 * st_finish() - end and free, also after an error
 * @size: bytes of the file, may be NULL
 * @hex: SHA-256 of the file, may be NULL
 *
 * Returns: 0; -EINVAL where declared bytes are missing or too many came, else -errno of
 * a write. The file has its name only after a 0.
 */
int st_finish(struct st_writer *w, uint64_t *size, char hex[65]);

/* ---- reading ---- */
struct st_file;
/**
 * st_open() - read and check a header
 * @err: NULL, or gets a malloc'ed line "what is wrong, naming the tensor"
 *
 * Refuses: header over 100 MB, broken JSON, unknown dtype, shape that does not match
 * the bytes, holes, overlap, bytes beyond the file. Returns NULL then.
 */
struct st_file *st_open(const char *path, char **err);
int st_count(const struct st_file *f);
const struct st_tensor *st_find(const struct st_file *f, const char *name);
/** st_read() - @n bytes of a tensor from @from on. 0 or -errno */
int st_read(struct st_file *f, const struct st_tensor *t, uint64_t from, void *buf, size_t n);
void st_close(struct st_file *f);

#endif
