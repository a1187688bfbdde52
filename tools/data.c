// SPDX-License-Identifier: MIT
/*
 * tenon data: what a model is asked, and what it should answer, in one safetensors file, so
 * that anybody can look at the data or train another model on it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "data.h"
#include "dims.h"
#include "options.h"
#include "safetensors.h"
#include "util.h"

static void __attribute__((noreturn)) fail(const char *path, int error)
{
	die("data: cannot write %s: %s; make room or give another --out", path, file_error(-error));
}

/* Sequence by sequence, first all inputs, then all targets. 0 or -errno */
static int stream(struct st_writer *st, enum split s, int count)
{
	int32_t *row[2] = { xmalloc(T_MAX * sizeof(**row)), xmalloc(T_MAX * sizeof(**row)) };
	int err = 0;

	for (int which = 0; which < 2; which++)
		for (int i = 0; i < count && !err; i++) {
			data_eval_batch(s, i, count, 1, T_MAX, row[0], row[1]);
			err = st_data(st, row[which], T_MAX * sizeof(**row));
		}
	free(row[0]);
	free(row[1]);
	return err;
}

static void write_file(const char *path, enum split s, int count)
{
	const int64_t shape[] = { count, T_MAX };
	struct st_writer *st = st_create(path);
	uint64_t size;
	char hex[65], *plain;
	int err, end;

	if (!st)
		fail(path, -errno);
	st_meta(st, "config", config_text());
	st_meta(st, "data", source_describe());
	st_declare(st, "inputs", "I32", 2, shape);
	st_declare(st, "targets", "I32", 2, shape);
	err = stream(st, s, count);
	end = st_finish(st, &size, hex);
	if (err || end)
		fail(path, err ? err : end);
	plain = text_plain(path);
	printf("%s: %d sequences of %d, %" PRIu64 " bytes, sha256 %s\n", plain, count, T_MAX, size,
	       hex);
	free(plain);
}

/* Only drawn splits end: from others come as many sequences as are wanted. */
static void check_count(enum split s, const char *split, int count)
{
	int32_t tok[T_MAX], target[T_MAX];

	if (!data_eval_batch(s, count - 1, count, 1, T_MAX, tok, target))
		die("data: --count %d: the %s split has fewer sequences; lower it, or raise "
		    "CONFIG_DATA_TRAIN_SEQS, _VAL_SEQS or _TEST_SEQS", count, split);
}

int verb_data(int argc, char **argv)
{
	const char *split = "train", *out = NULL, *data = CONFIG_DATA_PATH;
	int64_t count = 0;
	const struct opt opts[] = {
		{ "split", OPT_STRING, &split, 0, 0,
		  NR_SPLITS > 2 ? "train (default), val or test" : "train (default) or val" },
		{ "count", OPT_INT, &count, 1, INT32_MAX, "sequences" },
		{ "out", OPT_STRING, &out, 0, 0, "file to write" },
		{ "data", OPT_STRING, &data, 0, 0, "data path, default DATA_PATH" },
	};
	enum split s;

	options_parse("data", "", opts, ARRAY_SIZE(opts), argc, argv);
	if (!out || !count)
		die("data: --count N and --out FILE.safetensors are needed");
	s = data_split("data", split);
	data_open(data);
	check_count(s, split, count);
	write_file(out, s, count);
	return 0;
}
