// SPDX-License-Identifier: MIT
/*
 * Text source: files, folders, gzip, splits, refusals.
 */
#include <zlib.h>

#include "scratch.h"

#undef CONFIG_VOCAB_SIZE
#define CONFIG_VOCAB_SIZE 256

/* The code under test beside whatever source is linked. */
#define source_open text_open
#define source_tokens text_tokens
#define source_read text_read
#define source_describe text_describe
#define bytes_split_tail text_split_tail
#define bytes_ready text_ready
#define bytes_read text_read_bytes
#include "../data/bytes.c"
#include "../data/text.c"

static void put_text(const char *name, const char *s)
{
	put_file(scratch(name), s, strlen(s));
}

/* Does a split hold exactly the bytes of @want? */
static bool split_is(enum split s, const char *want)
{
	int n = strlen(want);
	int32_t tok[512];

	if (text_tokens(s) != (uint64_t)n)
		return false;
	text_read(s, 0, n, tok);
	for (int i = 0; i < n; i++)
		if (tok[i] != (uint8_t)want[i])
			return false;
	return true;
}

static bool opens(const char *name, const char *train, const char *val)
{
	text_open(scratch(name));
	if (split_is(SPLIT_TRAIN, train) && split_is(SPLIT_VAL, val))
		return true;
	diag("%s: %.*s", text_describe(), (int)text_tokens(SPLIT_TRAIN), text.p[SPLIT_TRAIN]);
	return false;
}

static void text_file(void)
{
	char sha[65];
	int32_t tok[4];
	gzFile gz;

	put_text("one.txt", "abcdefghijklmnopq\xc3\xa9r");
	ok(opens("one.txt", "abcdefghijklmnopq\xc3", "\xa9r"), "text_file: the last tenth");
	sha256_hex("abcdefghijklmnopq\xc3\xa9r", 20, sha);
	ok(strstr(text_describe(), sha) && strstr(text_describe(), "train 18, validation 2") &&
	   strstr(text_describe(), "last 10 %"), "text_file: %s", text_describe());
	text_read(SPLIT_TRAIN, 16, 2, tok);
	ok(tok[0] == 'q' && tok[1] == 0xc3, "text_file: bytes are ids");
	gz = gzopen(scratch("packed"), "wb");
	gzputs(gz, "0123456789");
	gzclose(gz);
	ok(opens("packed", "012345678", "9"), "text_file: gzip by content");
}

static void text_folder(void)
{
	dir_make(scratch("f/b"));
	dir_make(scratch("other"));
	put_text("f/c", "ccc");
	put_text("f/b/z", "zzz");
	put_text("f/a", "aaaa");
	put_text("f/.hidden", "hhh");
	put_text("f/empty", "");
	put_text("other/o", "ooo");
	ok(!link_replace("../other", scratch("f/link")) && !link_replace("../other/o",
	   scratch("f/d")), "text_folder: links");
	ok(opens("f", "aaaazzzcccoo", "o"), "text_folder: sorted, no hidden files, no linked folders");
	put_text("f/train.txt", "t");
	ok(opens("f", "aaaazzzcccooo", "t"), "text_folder: one name alone is no split");
	put_text("f/wiki.valid.txt", "v");
	put_text("f/interval.train.raw", "i");
	ok(opens("f", "it", "v"), "text_folder: splits by name");
	ok(strstr(text_describe(), "by name: 2 and 1 files, 5 others left out"),
	   "text_folder: %s", text_describe());
	dir_make(scratch("train/train"));
	put_text("train/x", "0123456789");
	ok(opens("train", "012345678", "9"), "text_folder: its own name does not count");
	dir_make(scratch("train/val"));
	put_text("train/train/y", "yy");
	put_text("train/val/y", "vv");
	ok(opens("train", "yy", "vv"), "text_folder: sub-folders name splits");
}

static void open_one(const void *path)
{
	text_open(path);
}

static void text_refuses(void)
{
	gzFile gz;

	dir_make(scratch("nothing/in"));
	put_text("empty.txt", "");
	ok(dies(open_one, "", "CONFIG_DATA_PATH"), "text_refuses no path");
	ok(dies(open_one, scratch("missing"), "missing"), "text_refuses a missing file");
	ok(dies(open_one, scratch("empty.txt"), "empty.txt: empty"), "text_refuses an empty file");
	ok(dies(open_one, scratch("nothing"), "no files"), "text_refuses a folder without files");
	put_text("nothing/in/x", "");
	ok(dies(open_one, scratch("nothing"), "nothing: empty"), "text_refuses empty files");
	gz = gzopen(scratch("torn.gz"), "wb");
	for (int i = 0; i < 1000; i++)
		gzprintf(gz, "%d ", i * i);
	gzclose(gz);
	ok(!truncate(scratch("torn.gz"), 500) && dies(open_one, scratch("torn.gz"),
	   "torn.gz: cannot be read: damaged"), "text_refuses torn gzip");
	put_text("locked", "x");
	if (chmod(scratch("locked"), 0) || !access(scratch("locked"), R_OK))
		ok(true, "text_refuses an unreadable file # SKIP root reads everything");
	else
		ok(dies(open_one, scratch("locked"), "locked: cannot"), "text_refuses unreadable");
}

int main(void)
{
	scratch_open();
	text_file();
	text_folder();
	text_refuses();
	scratch_close();
	return tap_done();
}
