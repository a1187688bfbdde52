// SPDX-License-Identifier: MIT
/*
 * Token shards, kept open and read where a batch wants them: a mapped file that is cut
 * short meanwhile would end the process with a signal.
 *
 * llm.c's form (github.com/karpathy/llm.c, dev/data): 256 little-endian int32, of which
 * magic, version and token count, then uint16 tokens; a folder or a glob names them, file
 * names with "train" and "val" tell the splits. "nanogpt:FOLDER" reads nanoGPT's
 * (github.com/karpathy/nanoGPT) train.bin and val.bin, which have no header.
 */
#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data.h"
#include "util.h"

enum {
	SHARD_MAGIC = 20240520,
	SHARD_VERSION = 1,
	SHARD_HEADER = 256 * 4,		/* bytes */
	AT_ONCE = 4096,			/* tokens of one read */
};

#define NANOGPT "nanogpt:"
#define FORM "CONFIG_DATA_PATH or --data wants a folder or glob of .bin shards (magic 20240520, version 1) " \
	"with train or val in their names, or nanogpt:FOLDER with train.bin and val.bin; " \
	"to train on text instead, put the lines CONFIG_DATA_TEXT=y and CONFIG_DATA_PATH=\"PATH\" " \
	"into mine.config and type `make mine.config all`; `make demo` brings its own data"

/* @count tokens, little-endian, behind @head bytes; @first: position of the first in the split */
struct shard {
	char *path;
	int fd, head;
	uint64_t first, count, bytes;
};

static struct {
	struct shard *shard[2];		/* by split, in the order of their paths */
	int nr[2];
	uint64_t tokens[2];
	char *line;
} shards;

static uint32_t le32(const uint8_t *p)
{
	return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Bytes [@at, @at + @n); dies where they are no longer all there. */
static void read_bytes(const struct shard *s, uint64_t at, void *buf, size_t n)
{
	ssize_t got;

	while (n && (got = pread(s->fd, buf, n, at)) != 0) {
		if (got < 0 && errno != EINTR)
			die("%s: cannot be read: %s", s->path, strerror(errno));
		if (got < 0)
			continue;
		buf = (uint8_t *)buf + got;
		at += got;
		n -= got;
	}
	if (n)
		die("%s: it had %" PRIu64 " bytes and now ends at %" PRIu64 ": it was cut short "
		    "while in use; copy or make it again", s->path, s->bytes, at);
}

/* Dies where the file is missing, empty or no file. */
static void open_file(struct shard *s)
{
	struct stat st;

	s->fd = file_open(s->path);
	if (s->fd < 0 || fstat(s->fd, &st) < 0)
		die("%s: cannot be opened: %s: " FORM, s->path, file_error(errno));
	if (!st.st_size)
		die("%s: empty: make it again", s->path);
	s->bytes = st.st_size;
}

/* A large set has more shards than a process may open unasked (1024). */
static void allow_files(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

/* Check the header; a shard that is not what it says is never used. */
static void check_header(struct shard *s)
{
	uint8_t p[12];

	if (s->bytes < SHARD_HEADER)
		die("%s: %" PRIu64 " bytes are too short for a shard's header of %d", s->path,
		    s->bytes, SHARD_HEADER);
	read_bytes(s, 0, p, sizeof(p));
	if (le32(p) != SHARD_MAGIC)
		die("%s: wrong magic %" PRIu32 ", a shard has %d (a headerless nanoGPT file is "
		    "read with '" NANOGPT "FOLDER')", s->path, le32(p), SHARD_MAGIC);
	if (le32(p + 4) != SHARD_VERSION)
		die("%s: version %" PRIu32 ", this program reads version %d (uint16 tokens)",
		    s->path, le32(p + 4), SHARD_VERSION);
	s->count = le32(p + 8);
	if (!s->count || s->bytes != SHARD_HEADER + 2 * s->count)
		die("%s: %" PRIu64 " bytes, but its header says %" PRIu64 " tokens (%" PRIu64
		    " bytes): copy or make it again", s->path, s->bytes, s->count,
		    SHARD_HEADER + 2 * s->count);
	s->head = SHARD_HEADER;
}

static void check_plain(struct shard *s)
{
	if (s->bytes % 2)
		die("%s: %" PRIu64 " bytes are no whole number of uint16 tokens", s->path,
		    s->bytes);
	s->count = s->bytes / 2;
	s->head = 0;
}

static void add_shard(enum split split, const char *path, bool header)
{
	struct shard *list = shards.shard[split], *s;

	list = xrealloc(list, (shards.nr[split] + 1) * sizeof(*list));
	shards.shard[split] = list;
	s = &list[shards.nr[split]++];
	s->path = xstrdup(path);
	open_file(s);
	if (header)
		check_header(s);
	else
		check_plain(s);
	s->first = shards.tokens[split];
	shards.tokens[split] += s->count;
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static enum split named_split(const char *path)
{
	bool train = strstr(base_name(path), "train"), val = strstr(base_name(path), "val");

	if (train == val)
		die("%s: the name has %s train and val: name shards by their split", path,
		    train ? "both" : "neither");
	return val ? SPLIT_VAL : SPLIT_TRAIN;
}

static void open_nanogpt(const char *folder)
{
	char *train = xasprintf("%s/train.bin", folder), *val = xasprintf("%s/val.bin", folder);

	add_shard(SPLIT_TRAIN, train, false);
	add_shard(SPLIT_VAL, val, false);
	free(train);
	free(val);
}

/* The pattern of a folder's .bin files; what is special in its own name is escaped. */
static char *folder_pattern(const char *folder)
{
	char *escaped = xmalloc(2 * strlen(folder) + 1), *p = escaped, *pattern;

	for (; *folder; folder++) {
		if (strchr("*?[\\", *folder))
			*p++ = '\\';
		*p++ = *folder;
	}
	*p = 0;
	pattern = xasprintf("%s/*.bin", escaped);
	free(escaped);
	return pattern;
}

/* A folder means its .bin files; glob() sorts. */
static void open_glob(const char *path)
{
	struct stat st;
	bool folder = !stat(path, &st) && S_ISDIR(st.st_mode);
	char *pattern = folder ? folder_pattern(path) : xstrdup(path);
	glob_t g;
	int err = glob(pattern, GLOB_ERR, NULL, &g);

	if (err)
		die("%s: %s: " FORM, path, err == GLOB_NOSPACE ? "no memory for the names" :
		    err != GLOB_NOMATCH ? "cannot be read" :
		    folder ? "no .bin files in this folder" : "no such files");
	for (size_t i = 0; i < g.gl_pathc; i++)
		add_shard(named_split(g.gl_pathv[i]), g.gl_pathv[i], true);
	globfree(&g);
	free(pattern);
}

/* One hash over "name bytes" lines: reading all of a large set would take minutes. */
static char *describe(const char *path)
{
	char *plain = text_plain(path), *line;
	struct sha256 sha;
	char hex[65];

	sha256_init(&sha);
	for (int split = SPLIT_TRAIN; split <= SPLIT_VAL; split++)
		for (int i = 0; i < shards.nr[split]; i++) {
			const struct shard *s = &shards.shard[split][i];

			line = xasprintf("%s %" PRIu64 "\n", base_name(s->path), s->bytes);
			sha256_update(&sha, line, strlen(line));
			free(line);
		}
	sha256_final(&sha, hex);
	line = xasprintf("%s: train %" PRIu64 " tokens in %d shards, validation %" PRIu64
			 " in %d (by name), sha256 of names and sizes %s", plain,
			 shards.tokens[SPLIT_TRAIN], shards.nr[SPLIT_TRAIN],
			 shards.tokens[SPLIT_VAL], shards.nr[SPLIT_VAL], hex);
	free(plain);
	return line;
}

void source_open(const char *path)
{
	if (!*path)
		die("no data to read: " FORM);
	allow_files();
	if (!strncmp(path, NANOGPT, strlen(NANOGPT)))
		open_nanogpt(path + strlen(NANOGPT));
	else
		open_glob(path);
	for (int s = SPLIT_TRAIN; s <= SPLIT_VAL; s++)
		if (!shards.nr[s])
			die("%s: no %s shards: " FORM, path, s == SPLIT_VAL ? "val" : "train");
	shards.line = describe(path);
}

uint64_t source_tokens(enum split s)
{
	return shards.tokens[s];
}

/* The shard that holds token @pos, by halving. */
static const struct shard *find_shard(enum split split, uint64_t pos)
{
	const struct shard *list = shards.shard[split];
	int lo = 0, hi = shards.nr[split] - 1;

	while (lo < hi) {
		int mid = (lo + hi + 1) / 2;

		if (list[mid].first <= pos)
			lo = mid;
		else
			hi = mid - 1;
	}
	return &list[lo];
}

/* @n tokens of one shard from its @at-th on */
static void read_tokens(const struct shard *s, uint64_t at, int n, int32_t *dst)
{
	uint8_t raw[2 * AT_ONCE];

	for (int i = 0; i < n; i++) {
		if (i % AT_ONCE == 0)
			read_bytes(s, s->head + 2 * (at + i), raw, 2 * MIN(AT_ONCE, n - i));
		dst[i] = raw[2 * (i % AT_ONCE)] | raw[2 * (i % AT_ONCE) + 1] << 8;
		if (dst[i] >= CONFIG_VOCAB_SIZE)
			die("%s: token %d at position %" PRIu64 " is not below VOCAB_SIZE %d: "
			    "these shards are of another tokenizer", s->path, dst[i], at + i,
			    CONFIG_VOCAB_SIZE);
	}
}

void source_read(enum split split, uint64_t pos, int n, int32_t *dst)
{
	const struct shard *s;
	int part;

	if (pos > shards.tokens[split] || (uint64_t)n > shards.tokens[split] - pos)
		die_bug("tokens %" PRIu64 " + %d of %" PRIu64, pos, n, shards.tokens[split]);
	for (s = find_shard(split, pos); n; s++, pos += part, dst += part, n -= part) {
		part = MIN((uint64_t)n, s->first + s->count - pos);
		read_tokens(s, pos - s->first, part, dst);
	}
}

const char *source_describe(void)
{
	return shards.line;
}
