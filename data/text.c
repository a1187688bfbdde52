// SPDX-License-Identifier: MIT
/*
 * Text: one file or a folder of files, plain or gzip by content, UTF-8 bytes as tokens.
 *
 * A folder is read recursively in the order of its paths, without names that begin with
 * a dot and without links to folders. Where some paths below it hold the word "train" and
 * others the word "val", "valid" or "validation", these are the splits and the rest is
 * left out; else all is read and the last tenth is the validation split.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "bytes.h"
#include "util.h"

#define FORM "CONFIG_DATA_PATH or --data wants UTF-8 text, a file or a folder of files, plain or .gz; " \
	"`make demo` brings its own data"

/* Files below the folder, [nr] malloc'ed paths. */
struct list {
	char **path;
	size_t nr;
};

static struct bytes text;

/* Does @s hold @word between non-letters? */
static bool has_word(const char *s, const char *word)
{
	size_t n = strlen(word);

	for (const char *p = s; (p = strstr(p, word)); p++)
		if ((p == s || !isalpha((unsigned char)p[-1])) && !isalpha((unsigned char)p[n]))
			return true;
	return false;
}

/* SPLIT_TRAIN, SPLIT_VAL, or -1 where the path names none or both. */
static int named_split(const char *path)
{
	bool train = has_word(path, "train");
	bool val = has_word(path, "val") || has_word(path, "valid") ||
		   has_word(path, "validation");

	return train == val ? -1 : val ? SPLIT_VAL : SPLIT_TRAIN;
}

static void list_add(struct list *l, char *path)
{
	l->path = xrealloc(l->path, (l->nr + 1) * sizeof(*l->path));
	l->path[l->nr++] = path;
}

/* Every file below @dir. */
static void walk(struct list *l, const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	struct stat st;

	if (!d)
		die("%s: cannot be read: %s", dir, strerror(errno));
	while ((e = readdir(d))) {
		char *path;

		if (e->d_name[0] == '.')
			continue;
		path = xasprintf("%s/%s", dir, e->d_name);
		if (lstat(path, &st) < 0)
			die("%s: %s", path, strerror(errno));
		if (S_ISDIR(st.st_mode))
			walk(l, path);
		else if (S_ISREG(st.st_mode) ||
			 (S_ISLNK(st.st_mode) && !stat(path, &st) && S_ISREG(st.st_mode)))
			list_add(l, xstrdup(path));
		free(path);
	}
	closedir(d);
}

static int by_path(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static uint8_t *read_file(const char *path, size_t *n)
{
	uint8_t *p = file_read(path, n);

	if (!p)
		die("%s: cannot be read: %s", path, file_error(errno));
	return p;
}

/*
 * The files that name one split, or all files (@want < 0), one behind the other in memory
 * that stays. Returns: bytes.
 */
static uint64_t join(const struct list *l, size_t skip, int want, const uint8_t **dst)
{
	uint8_t *all = NULL, *p;
	uint64_t total = 0;
	size_t n;

	for (size_t i = 0; i < l->nr; i++) {
		if (want >= 0 && named_split(l->path[i] + skip) != want)
			continue;
		p = read_file(l->path[i], &n);
		all = xrealloc(all, total + n + 1);
		memcpy(all + total, p, n);
		total += n;
		free(p);
	}
	*dst = all;
	return total;
}

/* How many files name each split. */
static void count_named(const struct list *l, size_t skip, size_t count[2])
{
	for (size_t i = 0; i < l->nr; i++) {
		int s = named_split(l->path[i] + skip);

		if (s >= 0)
			count[s]++;
	}
}

/* Splits by name where both are named, else the last tenth. Returns: the rule. */
static char *split_files(const struct list *l, size_t skip)
{
	size_t named[2] = { 0 };
	const uint8_t *all;
	uint64_t n;

	count_named(l, skip, named);
	if (!named[SPLIT_TRAIN] || !named[SPLIT_VAL]) {
		n = join(l, skip, -1, &all);
		bytes_split_tail(&text, all, n);
		return xstrdup("the last 10 %");
	}
	for (int s = SPLIT_TRAIN; s <= SPLIT_VAL; s++)
		text.n[s] = join(l, skip, s, &text.p[s]);
	return xasprintf("by name: %zu and %zu files, %zu others left out", named[SPLIT_TRAIN],
			 named[SPLIT_VAL], l->nr - named[SPLIT_TRAIN] - named[SPLIT_VAL]);
}

/* @skip: letters of the folder's own name, which say nothing about a file */
static void open_files(const char *path, const struct list *l, size_t skip)
{
	char *plain = text_plain(path);
	char *origin = xasprintf("%s (%zu %s)", plain, l->nr, l->nr == 1 ? "file" : "files");
	char *rule = split_files(l, skip);

	if (!(text.n[SPLIT_TRAIN] + text.n[SPLIT_VAL]))
		die("%s: empty: " FORM, path);
	bytes_ready(&text, origin, rule);
	free(origin);
	free(plain);
	free(rule);
}

void source_open(const char *path)
{
	struct list l = { 0 };
	struct stat st;

	if (!*path)
		die("no text to read: " FORM);
	if (stat(path, &st) < 0)
		die("%s: %s: " FORM, path, strerror(errno));
	if (S_ISDIR(st.st_mode))
		walk(&l, path);
	else
		list_add(&l, xstrdup(path));
	if (!l.nr)
		die("%s: no files in this folder: " FORM, path);
	qsort(l.path, l.nr, sizeof(*l.path), by_path);
	open_files(path, &l, S_ISDIR(st.st_mode) ? strlen(path) : 0);
	for (size_t i = 0; i < l.nr; i++)
		free(l.path[i]);
	free(l.path);
}

uint64_t source_tokens(enum split s)
{
	return text.n[s];
}

void source_read(enum split s, uint64_t pos, int n, int32_t *dst)
{
	bytes_read(&text, s, pos, n, dst);
}

const char *source_describe(void)
{
	return text.line;
}
