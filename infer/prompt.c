// SPDX-License-Identifier: MIT
/*
 * Prompts: text or token ids of the command line, or a file with one of them a line.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "infer.h"
#include "util.h"

#define BLANKS " ,\t\r\n"

static void from_text(struct prompt *p, const char *where, const char *text, size_t n)
{
	if (!TEXT)
		die("generate: this binary has no tokenizer; give token ids with --prompt-ids \"1 2 3\"");
	if (n > T_MAX)
		die("generate: %s has %zu tokens, the model CONFIG_BLOCK_SIZE=%d positions; shorten it",
		    where, n, T_MAX);
	p->n = n;
	for (size_t i = 0; i < n; i++)
		p->tok[i] = (unsigned char)text[i];
}

static int32_t parse_id(const char *where, const char *text, char **end)
{
	long id = strtol(text, end, 10);

	if (*end == text || (**end && !strchr(BLANKS, **end)))
		die("generate: %s has \"%s\" where a number should stand", where, text);
	if (id < 0 || id >= CONFIG_VOCAB_SIZE)
		die("generate: %s: token %ld is not below CONFIG_VOCAB_SIZE=%d", where, id,
		    CONFIG_VOCAB_SIZE);
	return id;
}

static void from_ids(struct prompt *p, const char *where, const char *text)
{
	char *at = (char *)text;
	size_t n = 0;

	while (*(at += strspn(at, BLANKS))) {
		int32_t id = parse_id(where, at, &at);

		p->tok[n++] = id;
	}
	if (n > T_MAX)
		die("generate: %s has %zu tokens, the model CONFIG_BLOCK_SIZE=%d positions; shorten it",
		    where, n, T_MAX);
	p->n = n;
}

/* One more prompt of @n bytes, with a 0 behind them. */
static void add(struct prompts *all, const char *where, const char *text, size_t n, bool ids)
{
	struct prompt *p;

	all->list = xrealloc(all->list, (all->nr + 1) * sizeof(*all->list));
	p = &all->list[all->nr++];
	p->tok = xcalloc(n + 1, sizeof(*p->tok));
	if (ids)
		from_ids(p, where, text);
	else
		from_text(p, where, text, n);
	if (!p->n)
		die("generate: %s is empty; give at least one token", where);
}

/* One prompt a line; the last line need not end. */
static void from_file(struct prompts *all, const char *path)
{
	size_t size;
	char *data = (char *)file_read(path, &size), *at = data, *end;

	if (!data)
		die("generate: cannot read --prompts %s: %s", path, file_error(errno));
	for (int line = 1; at < data + size; line++, at = end + 1) {
		char *where = xasprintf("%s line %d", path, line);

		end = memchr(at, '\n', data + size - at);
		if (!end)
			end = data + size;
		*end = 0;
		if (!TEXT && strlen(at) < (size_t)(end - at))
			die("generate: %s holds a 0 byte; it must be token ids", where);
		add(all, where, at, end - at, !TEXT);
		free(where);
	}
	free(data);
	if (!all->nr)
		die("generate: --prompts %s is empty; give one prompt a line", path);
}

void prompts_read(struct prompts *p, const char *text, const char *ids, const char *file)
{
	*p = (struct prompts){ .nr = 0 };
	if (!!text + !!ids + !!file > 1)
		die("generate: --prompt, --prompt-ids and --prompts exclude each other");
	if (!text && !ids && !file && !TEXT)
		die("generate: this binary has no tokenizer; give --prompt-ids \"1 2 3\"");
	text = text ? text : "\n";
	if (file)
		from_file(p, file);
	else if (ids)
		add(p, "--prompt-ids", ids, strlen(ids), true);
	else
		add(p, "the prompt", text, strlen(text), false);
}

void prompts_free(struct prompts *p)
{
	for (int i = 0; i < p->nr; i++)
		free(p->list[i].tok);
	free(p->list);
}
