// SPDX-License-Identifier: MIT
/*
 * fixdep RAW.d OBJTREE/include: print the dependencies of one object.
 *
 * The compiler's list names every file that was read, autoconf.h among them,
 * which any change of the configuration touches. Here that header is replaced
 * by the symbols which the other files use: OBJTREE/include/config/X is touched
 * when X changes, so that a changed symbol rebuilds its users and nothing else.
 *
 * Comments and string literals do not count as use. A CONFIG_ name that is no
 * symbol is an error: IS_ENABLED() would take it for n without a word.
 */
#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PREFIX "CONFIG_"

static const char *include_dir;

struct list {
	char **item;
	int nr;
};

static struct list files, symbols;

static void *check(void *p, const char *what)
{
	if (p)
		return p;
	perror(what);
	exit(1);
}

static void list_add(struct list *l, const char *s, size_t n)
{
	for (int i = 0; i < l->nr; i++)
		if (strlen(l->item[i]) == n && !memcmp(l->item[i], s, n))
			return;
	l->item = check(realloc(l->item, (l->nr + 1) * sizeof(*l->item)), "fixdep");
	l->item[l->nr++] = check(strndup(s, n), "fixdep");
}

static char *read_file(const char *path)
{
	FILE *f = check(fopen(path, "r"), path);
	char *text = NULL;
	size_t size = 0, n;

	do {
		text = check(realloc(text, size + 65537), path);
		n = fread(text + size, 1, 65536, f);
		size += n;
	} while (n);
	fclose(f);
	text[size] = '\0';
	return text;
}

static bool is_symbol(const char *name, size_t n)
{
	char stamp[4096];

	snprintf(stamp, sizeof(stamp), "%s/config/%.*s", include_dir, (int)n, name);
	return n && !access(stamp, F_OK);
}

/* The length without the ending of a word that autoconf.h derives from a symbol. */
static size_t stem_length(const char *name, size_t n)
{
	static const char *const ending[] = { "_NONZERO", "_LEN", "_NR" };

	for (size_t i = 0; i < sizeof(ending) / sizeof(*ending); i++) {
		size_t tail = strlen(ending[i]);

		if (n > tail && !memcmp(name + n - tail, ending[i], tail))
			return n - tail;
	}
	return n;
}

static void add_symbol(const char *path, const char *word, size_t n)
{
	const char *name = word + strlen(PREFIX);

	n -= strlen(PREFIX);
	if (!is_symbol(name, n))
		n = stem_length(name, n);
	if (!is_symbol(name, n)) {
		fprintf(stderr, "%s: " PREFIX "%.*s is no symbol of any Kconfig file; "
			"add it there or correct the name\n", path, (int)n, name);
		exit(2);
	}
	list_add(&symbols, name, n);
}

/* Past a literal that starts at @s; it ends with its line at the latest. */
static const char *skip_literal(const char *s)
{
	const char quote = *s++;

	while (*s && *s != quote && *s != '\n')
		s += *s == '\\' && s[1] ? 2 : 1;
	return *s ? s + 1 : s;
}

/* Past a comment that starts at @s. */
static const char *skip_comment(const char *s)
{
	const char *end = s[1] == '*' ? "*/" : "\n";
	const char *p = strstr(s + 2, end);

	return p ? p + strlen(end) : s + strlen(s);
}

static const char *skip_word(const char *s)
{
	while (isalnum((unsigned char)*s) || *s == '_')
		s++;
	return s;
}

static void scan(const char *path)
{
	char *text = read_file(path);
	const char *s = text;

	while (*s) {
		const char *word = s;

		if (*s == '/' && (s[1] == '*' || s[1] == '/')) {
			s = skip_comment(s);
		} else if (*s == '"' || *s == '\'') {
			s = skip_literal(s);
		} else if (isalnum((unsigned char)*s) || *s == '_') {
			s = skip_word(s);
			if (!strncmp(word, PREFIX, strlen(PREFIX)))
				add_symbol(path, word, s - word);
		} else {
			s++;
		}
	}
	free(text);
}

/* The files of a rule "target: file file \ ...", autoconf.h left away. */
static void read_rule(const char *path)
{
	char *text = read_file(path);
	char *colon = check(strstr(text, ": "), path);

	for (char *p = strtok(colon + 1, " \\\n"); p; p = strtok(NULL, " \\\n"))
		if (!strstr(p, "/generated/autoconf.h"))
			list_add(&files, p, strlen(p));
	*colon = '\0';
	printf("%s:", text);
	free(text);
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: fixdep RAW.d OBJTREE/include\n");
		return 2;
	}
	include_dir = argv[2];
	read_rule(argv[1]);
	for (int i = 0; i < files.nr; i++)
		scan(files.item[i]);

	for (int i = 0; i < files.nr; i++)
		printf(" \\\n  %s", files.item[i]);
	for (int i = 0; i < symbols.nr; i++)
		printf(" \\\n  %s/config/%s", include_dir, symbols.item[i]);
	/* An empty rule each: a header that is gone rebuilds its users. */
	printf("\n");
	for (int i = 1; i < files.nr; i++)
		printf("%s:\n", files.item[i]);
	for (int i = 0; i < symbols.nr; i++)
		printf("%s/config/%s:\n", include_dir, symbols.item[i]);
	return fflush(stdout) || ferror(stdout);
}
