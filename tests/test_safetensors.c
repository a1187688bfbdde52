// SPDX-License-Identifier: MIT
/*
 * safetensors: what is written is read back; what is not whole is refused by name.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>

#include "safetensors.h"
#include "scratch.h"

static const int64_t shape_a[] = { 3, 5 }, shape_b[] = { 7 }, shape_c[] = { 2, 0, 4 };
static float values_a[15];
static double values_b[7];

static int write_example(const char *path, uint64_t *size, char hex[65])
{
	struct st_writer *w = st_create(path);

	st_meta(w, "config", "CONFIG_X=\"y\"\n");
	st_declare(w, "a", "F32", 2, shape_a);
	st_declare(w, "empty", "BF16", 3, shape_c);
	st_declare(w, "h.0.b", "F64", 1, shape_b);
	st_data(w, values_a, 20);
	st_data(w, (char *)values_a + 20, sizeof(values_a) - 20);
	st_data(w, values_b, sizeof(values_b));
	return st_finish(w, size, hex);
}

/* The JSON header of a file, read apart. */
static json_t *header(const uint8_t *bytes)
{
	uint64_t n = 0;

	for (int i = 8; i--;)
		n = n << 8 | bytes[i];
	return json_loadb((const char *)bytes + 8, n, JSON_REJECT_DUPLICATES, NULL);
}

static void st_round_trip(void)
{
	const char *path = scratch("x.safetensors");
	char hex[65], want[65], *err = NULL;
	const struct st_tensor *a, *b, *empty;
	json_t *head, *meta;
	float back[15], two[2];
	struct st_file *f;
	uint64_t size;
	size_t n;

	for (int i = 0; i < 15; i++)
		values_a[i] = i * 0.5f;
	ok(!write_example(path, &size, hex), "st_round_trip: write");
	uint8_t *bytes = file_read(path, &n);
	sha256_hex(bytes, n, want);
	ok(n == size && !strcmp(hex, want), "st_finish: size and checksum of the file");
	ok(bytes[0] % 8 == 0 && bytes[8] == '{', "st_create: tensors start on 8 bytes");
	head = header(bytes);
	meta = json_object_get(head, "__metadata__");
	ok(json_object_size(meta) == 1 &&
	   !strcmp(json_string_value(json_object_get(meta, "config")), "CONFIG_X=\"y\"\n"),
	   "st_meta");
	json_decref(head);
	free(bytes);
	f = st_open(path, &err);
	ok(f && st_count(f) == 3, "st_open: %s", err ? err : "whole");
	a = st_find(f, "a");
	b = st_find(f, "h.0.b");
	empty = st_find(f, "empty");
	ok(!strcmp(a->name, "a") && a->offset < b->offset && empty->offset == a->offset + 60 &&
	   !st_find(f, "none"), "st_find, in the order of the file");
	ok(a->ndim == 2 && a->shape[0] == 3 && a->shape[1] == 5 && a->bytes == 60 &&
	   !strcmp(b->dtype, "F64") && b->offset == a->offset + 60, "st_find: shapes");
	ok(!st_read(f, a, 0, back, 60) && !memcmp(back, values_a, 60), "st_read: all");
	ok(!st_read(f, a, 52, two, 8) && two[1] == values_a[14], "st_read: the end");
	ok(st_read(f, a, 52, two, 9) == -EINVAL && st_read(f, a, 61, two, 0) == -EINVAL,
	   "st_read: not beyond the tensor");
	st_close(f);
}

static void st_writer_counts_bytes(void)
{
	const char *path = scratch("short");
	struct st_writer *w = st_create(path);
	uint64_t size;
	char hex[65];

	st_declare(w, "a", "F32", 2, shape_a);
	st_data(w, values_a, 59);
	ok(st_finish(w, &size, hex) == -EINVAL && access(path, F_OK), "st_finish: too few bytes");
	w = st_create(path);
	st_declare(w, "a", "F32", 2, shape_a);
	ok(!st_data(w, values_a, 60) && st_data(w, values_a, 1) == -EINVAL &&
	   st_finish(w, NULL, NULL) == -EINVAL, "st_data: too many bytes");
	w = st_create(path);
	ok(!st_finish(w, &size, hex) && size > 8, "st_finish: no tensors");
	ok(!st_create(scratch("no/folder")) && errno == ENOENT, "st_create: errno");
}

/* A file of a header and @data bytes is refused with a line that holds @words. */
static void refused(const char *name, const char *header, size_t data, const char *words)
{
	size_t n = strlen(header);
	uint8_t *file = xcalloc(8 + n + data, 1);
	char *err = NULL;
	struct st_file *f;

	for (int i = 0; i < 8; i++)
		file[i] = n >> 8 * i;
	memcpy(file + 8, header, n);
	put_file(scratch("bad"), file, 8 + n + data);
	f = st_open(scratch("bad"), &err);
	ok(!f && err && strstr(err, words) && !strchr(err, '\n'), "st_open refuses %s: %s", name,
	   err ? err : "accepted");
	free(err);
	free(file);
	if (f)
		st_close(f);
}

#define T(name, dtype, shape, from, to) \
	"\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #from \
	"," #to "]}"

static void st_open_refuses(void)
{
	refused("an empty header", "", 0, "begin");
	refused("a list", "[1]", 0, "begin");
	refused("leading spaces", " {}", 0, "begin");
	refused("broken JSON", "{\"a\":", 0, "JSON");
	refused("trailing text", "{} x", 0, "JSON");
	refused("a name twice", "{" T("a", "U8", "1", 0, 1) "," T("a", "U8", "1", 1, 2) "}", 2,
		"JSON");
	refused("a number of 30 digits",
		"{" T("a", "U8", "1", 0, 100000000000000000000000000000) "}", 1, "JSON");
	refused("an unknown dtype", "{" T("w", "F33", "1", 0, 4) "}", 4, "tensor w");
	refused("a long dtype", "{" T("w", "F32F32F32F32", "1", 0, 4) "}", 4, "tensor w");
	refused("no object", "{\"w\":3}", 0, "tensor w");
	refused("a missing key", "{\"w\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "tensor w");
	refused("an unknown key", "{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]"
		",\"x\":1}}", 1, "tensor w");
	refused("a negative size", "{" T("w", "U8", "-1", 0, 1) "}", 1, "tensor w");
	refused("a real size", "{" T("w", "U8", "1.0", 0, 1) "}", 1, "tensor w");
	refused("nine dimensions", "{" T("w", "U8", "1,1,1,1,1,1,1,1,1", 0, 1) "}", 1, "tensor w");
	refused("a negative offset", "{" T("w", "U8", "1", -1, 0) "}", 1, "tensor w");
	refused("an end before its start", "{" T("w", "U8", "1", 1, 0) "}", 1, "tensor w ends");
	refused("one offset", "{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1]}}", 1,
		"tensor w");
	refused("bytes beyond the file", "{" T("w", "U8", "9", 0, 9) "}", 8, "tensor w");
	refused("a shape that does not match", "{" T("w", "F32", "2", 0, 4) "}", 4, "tensor w");
	refused("a shape that overflows", "{" T("w", "U8", "4294967296,4294967296", 0, 0) "}", 0,
		"tensor w");
	refused("a hole", "{" T("a", "U8", "1", 0, 1) "," T("w", "U8", "1", 2, 3) "}", 3,
		"tensor w has a hole");
	refused("a hole at the start", "{" T("w", "U8", "1", 1, 2) "}", 2, "tensor w has a hole");
	refused("overlap", "{" T("a", "U8", "2", 0, 2) "," T("w", "U8", "2", 1, 3) "}", 3,
		"tensor w overlaps");
	refused("bytes left over", "{" T("w", "U8", "1", 0, 1) "}", 2, "1 bytes follow w");
	refused("a name of two lines", "{\"w\\nv\":3}", 0, "tensor w?v");
	refused("metadata that is no object", "{\"__metadata__\":3}", 0, "__metadata__");
	refused("metadata that is no text", "{\"__metadata__\":{\"a\":3}}", 0, "__metadata__ a");
}

static void cannot_open(const char *file, const char *what)
{
	char *err = NULL;

	bool refuses = !st_open(scratch(file), &err);

	ok(refuses && err, "st_open refuses %s: %s", what, err);
	free(err);
}

static void st_open_refuses_lengths(void)
{
	static const uint8_t huge[16] = { 0, 0, 0, 0, 0, 0, 0, 0x80, '{', '}' };
	static const uint8_t more[16] = { 9, 0, 0, 0, 0, 0, 0, 0, '{', '}' };

	put_file(scratch("bad"), huge, 7);
	cannot_open("bad", "7 bytes");
	put_file(scratch("bad"), huge, 16);
	cannot_open("bad", "a huge header");
	put_file(scratch("bad"), more, 16);
	cannot_open("bad", "a cut header");
	cannot_open("none", "a missing file");
	cannot_open("", "a folder");
}

static int by_offset(const void *a, const void *b)
{
	const struct st_tensor *x = *(const struct st_tensor **)a, *y = *(const struct st_tensor **)b;

	return x->offset != y->offset ? (x->offset > y->offset) - (x->offset < y->offset) :
					(x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* Whatever opens must be whole: tensors touching, up to the end of the file. */
static bool sane(const struct st_file *f, const uint8_t *bytes, uint64_t size)
{
	const struct st_tensor *all[8];
	json_t *head = header(bytes), *entry;
	uint64_t end;
	const char *name;
	int n = 0;

	json_object_foreach(head, name, entry)
		if (strcmp(name, "__metadata__"))
			all[n++] = st_find(f, name);
	qsort(all, n, sizeof(*all), by_offset);
	end = n ? all[0]->offset : size;
	for (int i = 0; i < n && all[i]->offset == end; i++)
		end += all[i]->bytes;
	json_decref(head);
	return n == st_count(f) && end == size;
}

static void st_open_survives_garbage(void)
{
	enum { ROUNDS = 3000 };
	int opened = 0, bad = 0;
	size_t n;
	uint8_t *good = file_read(scratch("x.safetensors"), &n), *copy = xmalloc(n);
	char *err;

	for (int r = 0; r < ROUNDS; r++) {
		size_t size = r % 3 ? n : rng_u64(r, 1, 0) % n;
		struct st_file *f;

		memcpy(copy, good, n);
		for (int k = 0; k < 1 + r % 4; k++)
			copy[rng_u64(r, 2, k) % 160] = rng_u64(r, 3, k);
		put_file(scratch("fuzz"), copy, size);
		err = NULL;
		f = st_open(scratch("fuzz"), &err);
		bad += f ? !sane(f, copy, size) : !err || strchr(err, '\n');
		opened += !!f;
		if (f)
			st_close(f);
		free(err);
	}
	ok(!bad, "st_open_survives_garbage: %d bad of %d, %d opened", bad, ROUNDS, opened);
	for (size_t size = 0; size < n; size++) {
		struct st_file *f;

		put_file(scratch("fuzz"), good, size);
		f = st_open(scratch("fuzz"), NULL);
		bad += !!f;
		if (f)
			st_close(f);
	}
	ok(!bad, "st_open refuses every truncation");
	free(good);
	free(copy);
}

int main(void)
{
	scratch_open();
	st_round_trip();
	st_writer_counts_bytes();
	st_open_refuses();
	st_open_refuses_lengths();
	st_open_survives_garbage();
	scratch_close();
	return tap_done();
}
