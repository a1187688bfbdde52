// SPDX-License-Identifier: MIT
/*
 * What reads files that somebody else wrote, for libFuzzer under ASan and UBSan:
 * tests/fuzz/run.sh. The first byte of an input chooses the reader, the rest is the file.
 *
 * Readers may refuse an input, by a return value or die(); a crash, an undefined operation or
 * an endless loop is a finding. A manifest gets the digest that it should have, so that
 * what lies behind the digest is reached, too.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../ckpt/ckpt.h"
#include "infer.h"
#include "json.h"
#include "safetensors.h"
#include "util.h"
#include "../../train/train.h"
#include "../../data/shard.c"	/* for its static state, which an input must not leave behind */

static char folder[64];
static jmp_buf back;

/* What the rest of the binary would give: nothing of it is read from a file. */
const char *config_text(void)
{
	return "CONFIG_N_LAYER=2\n";
}

const char *build_text(void)
{
	return "fuzz";
}

const char *config_hash(void)
{
	return "0";
}

const char *flag_words(const char *name)
{
	return name;
}

size_t arch_memory_used(const char **what)
{
	(void)what;
	return 0;
}

static const struct optim_scalar scalars[] = {
	{ .name = "integer", .offset = 0, .real = false, .count = 1 },
	{ .name = "reals", .offset = 8, .real = true, .count = 4 },
};

const struct optim_rule optim_rule = { .scalars = scalars, .nr_scalars = ARRAY_SIZE(scalars) };

static void dead(int status)
{
	(void)status;
	longjmp(back, 1);
}

/* A file of the folder with these bytes; its path is valid until the next call. */
static const char *put(const char *name, const uint8_t *data, size_t n)
{
	static char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || write(fd, data, n) != (ssize_t)n || close(fd))
		abort();
	return path;
}

static void safetensors(const uint8_t *data, size_t n)
{
	char *why = NULL, bytes[64];
	struct st_file *f = st_open(put("x.safetensors", data, n), &why);
	const struct st_tensor *t;

	if (!f) {
		free(why);
		return;
	}
	t = st_find(f, "w");
	if (t)
		st_read(f, t, 0, bytes, MIN(sizeof(bytes), t->bytes));
	st_close(f);
}

static void state(const uint8_t *data, size_t n)
{
	struct ckpt_state *st = xcalloc(1, sizeof(*st));

	put("state.json", data, n);
	free(state_read(folder, st));
	free(st);
}

static void manifest(const uint8_t *data, size_t n)
{
	struct ckpt_state *st = xcalloc(1, sizeof(*st));
	json_t *root = json_loadb((const char *)data, n, JSON_REJECT_DUPLICATES, NULL);
	char hex[65], *text, *config = NULL;

	put("manifest.json", data, n);
	if (json_is_object(root)) {
		json_object_del(root, "manifest_sha256");
		text = json_dumps(root, JSON_INDENT(1) | JSON_SORT_KEYS);
		sha256_hex(text, strlen(text), hex);
		free(text);
		json_object_set_new(root, "manifest_sha256", json_string(hex));
		text = json_dumps(root, 0);
		put("manifest.json", (uint8_t *)text, strlen(text));
		free(text);
	}
	json_decref(root);
	free(manifest_check(folder, &config, st));
	free(config);
	free(st);
}

static void shards_of(const uint8_t *data, size_t n)
{
	int32_t tok[8];

	put("a_train.bin", data, n);
	put("a_val.bin", data, n);
	source_open(folder);
	for (int s = SPLIT_TRAIN; s <= SPLIT_VAL; s++)
		if (source_tokens(s) >= ARRAY_SIZE(tok))
			source_read(s, source_tokens(s) - ARRAY_SIZE(tok), ARRAY_SIZE(tok), tok);
}

static void prompts(const uint8_t *data, size_t n)
{
	struct prompts p = { 0 };

	prompts_read(&p, NULL, NULL, put("prompts", data, n));
	prompts_free(&p);
}

static void prompt_ids(const uint8_t *data, size_t n)
{
	struct prompts p = { 0 };
	char *text = xcalloc(n + 1, 1);

	memcpy(text, data, n);
	prompts_read(&p, NULL, text, NULL);
	prompts_free(&p);
	free(text);
}

/* Two configurations, as a checkpoint and a binary have them: halves of the input. */
static void configs(const uint8_t *data, size_t n)
{
	char *was = xcalloc(n + 1, 1), *is = xcalloc(n + 1, 1);

	memcpy(was, data, n / 2);
	memcpy(is, data + n / 2, n - n / 2);
	free(compat_diff(was, is, COMPAT_RESUME));
	free(compat_diff(was, is, COMPAT_WEIGHTS));
	free(was);
	free(is);
}

/* metrics.jsonl: as the checkpoint left it, or altered since; the first byte says which. */
static void rows(const uint8_t *data, size_t n)
{
	struct ckpt_state *st = xcalloc(1, sizeof(*st));
	struct metrics *t;

	if (n) {
		put("metrics.jsonl", data + 1, n - 1);
		st->step = 5;
		st->eval_step = *data & 1 ? 5 : 0;
		st->log.bytes = n - 1 + !!(*data & 2);
		sha256_hex((const char *)data + 1, n - 1, st->log.sha256);
		t = metrics_open(folder, st);
		metrics_close(t);
		unlink(put("metrics.jsonl.old-1", NULL, 0));
	}
	free(st);
}

static void (*const readers[])(const uint8_t *, size_t) = {
	safetensors, state, manifest, shards_of, prompts, prompt_ids, configs, rows,
};

static void forget_shards(void)
{
	for (int s = 0; s < 2; s++) {
		for (int i = 0; i < shards.nr[s]; i++) {
			close(shards.shard[s][i].fd);
			free(shards.shard[s][i].path);
		}
		free(shards.shard[s]);
	}
	free(shards.line);
	memset(&shards, 0, sizeof(shards));
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	snprintf(folder, sizeof(folder), "/dev/shm/tenon-fuzz-XXXXXX");
	if (!mkdtemp(folder))
		abort();
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	if (!n)
		return 0;
	die_hook(dead);
	if (!setjmp(back))
		readers[*data % ARRAY_SIZE(readers)](data + 1, n - 1);
	die_hook(NULL);
	forget_shards();
	return 0;
}
