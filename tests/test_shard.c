// SPDX-License-Identifier: MIT
/*
 * Shard source: both forms, shard borders, refusals.
 */
#include "scratch.h"

#undef CONFIG_VOCAB_SIZE
#define CONFIG_VOCAB_SIZE 50257

/* The code under test beside whatever source is linked. */
#define source_open shard_open
#define source_tokens shard_tokens
#define source_read shard_read
#define source_describe shard_describe
#include "../data/shard.c"

enum { MOST = 4096 };

/* A shard of tokens first, first + 1, ...; @bytes more (or fewer) than its header says. */
static void put_shard(const char *name, int32_t magic, int32_t version, int first, int count,
		      int bytes)
{
	static uint8_t file[SHARD_HEADER + 2 * MOST + 16];
	int32_t head[256] = { magic, version, count };

	memcpy(file, head, sizeof(head));
	for (int i = 0; i < count; i++) {
		file[SHARD_HEADER + 2 * i] = first + i;
		file[SHARD_HEADER + 2 * i + 1] = (first + i) >> 8;
	}
	put_file(scratch(name), file, SHARD_HEADER + 2 * count + bytes);
}

static void put_good(const char *name, int first, int count)
{
	put_shard(name, SHARD_MAGIC, SHARD_VERSION, first, count, 0);
}

static void forget(void)
{
	memset(&shards, 0, sizeof(shards));
}

/* Every piece of a split must be its positions plus @first. */
static bool counts_up(enum split s, int first, int total)
{
	int32_t tok[MOST];

	if (shard_tokens(s) != (uint64_t)total)
		return false;
	for (int pos = 0; pos < total; pos += 7)
		for (int n = 1; n <= 60 && pos + n <= total; n += 13) {
			shard_read(s, pos, n, tok);
			for (int i = 0; i < n; i++)
				if (tok[i] != first + pos + i)
					return false;
		}
	shard_read(s, 0, total, tok);
	return tok[total - 1] == first + total - 1;
}

static void shard_folder(void)
{
	dir_make(scratch("s[1]"));
	put_good("s[1]/x_train_000002.bin", 1105, 1000);
	put_good("s[1]/x_train_000001.bin", 1000, 105);
	put_good("s[1]/x_train_000003.bin", 2105, 1);
	put_good("s[1]/x_val_000000.bin", 50000, 257);
	put_file(scratch("s[1]/README"), "x", 1);
	shard_open(scratch("s[1]"));
	ok(counts_up(SPLIT_TRAIN, 1000, 1106), "shard_folder: across borders, in order");
	ok(counts_up(SPLIT_VAL, 50000, 257), "shard_folder: validation, the highest token");
	ok(strstr(shard_describe(), "train 1106 tokens in 3 shards, validation 257 in 1"),
	   "shard_folder: %s", shard_describe());
	forget();
	dir_make(scratch("g"));
	put_good("g/a.train.bin", 5, 10);
	put_good("g/a.val.bin", 7, 10);
	put_good("g/b.train.bin", 0, 10);
	shard_open(scratch("g/a.*.bin"));
	ok(counts_up(SPLIT_TRAIN, 5, 10) && counts_up(SPLIT_VAL, 7, 10), "shard_glob");
	forget();
}

static void shard_nanogpt(void)
{
	static const uint8_t train[] = { 1, 0, 2, 0, 3, 0 }, val[] = { 0x50, 0xc4 };
	char path[600];
	int32_t tok;

	dir_make(scratch("n"));
	put_file(scratch("n/train.bin"), train, 6);
	put_file(scratch("n/val.bin"), val, 2);
	snprintf(path, sizeof(path), "nanogpt:%s", scratch("n"));
	shard_open(path);
	shard_read(SPLIT_VAL, 0, 1, &tok);
	ok(counts_up(SPLIT_TRAIN, 1, 3) && shard_tokens(SPLIT_VAL) == 1 && tok == 50256,
	   "shard_nanogpt");
	forget();
}

static void open_one(const void *path)
{
	shard_open(path);
}

static void open_and_read(const void *path)
{
	int32_t tok[10];

	shard_open(path);
	shard_read(SPLIT_TRAIN, 0, 3, tok);
	shard_read(SPLIT_TRAIN, 3, 10, tok);
}

/* The folder "bad" with a good val shard and this train shard is refused with @words. */
static void refused(const char *what, const char *words)
{
	ok(dies(open_one, scratch("bad"), words), "shard_refuses %s", what);
}

static void shard_refuses(void)
{
	const char *name = "bad/train.bin";

	dir_make(scratch("bad"));
	refused("an empty folder", "no .bin files");
	put_good("bad/val.bin", 0, 20);
	refused("a missing training split", "no train shards");
	put_shard(name, 20240521, 1, 0, 20, 0);
	refused("wrong magic", "train.bin: wrong magic 20240521");
	put_shard(name, SHARD_MAGIC, 7, 0, 20, 0);
	refused("wrong version", "train.bin: version 7");
	put_shard(name, SHARD_MAGIC, 1, 0, 20, -1);
	refused("a byte too few", "train.bin: 1063 bytes");
	put_shard(name, SHARD_MAGIC, 1, 0, 20, 2);
	refused("a token too many", "train.bin: 1066 bytes");
	put_shard(name, SHARD_MAGIC, 1, 0, 0, 0);
	refused("no tokens", "0 tokens");
	put_file(scratch(name), "", 0);
	refused("an empty file", "train.bin: empty");
	put_file(scratch(name), "x", 1);
	refused("a file shorter than its header", "train.bin: 1 bytes are too short");
	put_good(name, 0, 20);
	put_good("bad/test.bin", 0, 20);
	refused("a name without split", "test.bin: the name has neither");
	path_rename(scratch("bad/test.bin"), scratch("bad/train_val.bin"));
	refused("a name with both splits", "train_val.bin: the name has both");
	ok(dies(open_one, "", "DATA_PATH"), "shard_refuses no path");
	ok(dies(open_one, scratch("missing"), "missing"), "shard_refuses a missing folder");
	ok(dies(open_one, "nanogpt:/no/such", "/no/such/train.bin"), "shard_refuses no nanogpt");
	dir_make(scratch("high"));
	put_good("high/train.bin", 50250, 20);
	put_good("high/val.bin", 0, 20);
	ok(dies(open_and_read, scratch("high"), "train.bin: token 50257 at position 7"),
	   "shard_refuses a token beyond the vocabulary");
}

static void cut_and_read(const void *bytes)
{
	int32_t tok[20];

	shard_open(scratch("cut"));
	shard_read(SPLIT_TRAIN, 0, 20, tok);
	file_truncate(scratch("cut/train.bin"), *(const uint64_t *)bytes);
	shard_read(SPLIT_TRAIN, 0, 2, tok);
	shard_read(SPLIT_TRAIN, 17, 3, tok);
}

/* A file that another program shortens while it is in use. */
static void shard_cut_short(void)
{
	static const uint64_t ends[] = { SHARD_HEADER + 38, SHARD_HEADER + 39, SHARD_HEADER + 1, 7, 0 };
	char words[80];

	dir_make(scratch("cut"));
	put_good("cut/val.bin", 0, 20);
	for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
		put_good("cut/train.bin", 0, 20);
		snprintf(words, sizeof(words), "cut/train.bin: it had %d bytes and now ends at %d",
			 SHARD_HEADER + 40, (int)MAX(ends[i], SHARD_HEADER));
		ok(dies(cut_and_read, &ends[i], words), "shard_cut_short to %d bytes", (int)ends[i]);
	}
}

/* More tokens than one read takes. */
static void shard_long(void)
{
	enum { N = 3 * AT_ONCE + 5 };
	static uint8_t file[2 * N];
	static int32_t tok[N];
	char path[600];
	int wrong = 0;

	for (int i = 0; i < N; i++) {
		file[2 * i] = i;
		file[2 * i + 1] = i >> 8;
	}
	dir_make(scratch("l"));
	put_file(scratch("l/train.bin"), file, sizeof(file));
	put_file(scratch("l/val.bin"), file, 2);
	snprintf(path, sizeof(path), "nanogpt:%s", scratch("l"));
	shard_open(path);
	shard_read(SPLIT_TRAIN, 3, N - 3, tok);
	for (int i = 0; i < N - 3; i++)
		wrong += tok[i] != i + 3;
	ok(!wrong, "shard_long: %d tokens in one piece", N - 3);
	forget();
}

int main(void)
{
	scratch_open();
	shard_folder();
	shard_nanogpt();
	shard_refuses();
	shard_cut_short();
	shard_long();
	scratch_close();
	return tap_done();
}
