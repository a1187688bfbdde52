// SPDX-License-Identifier: MIT
/*
 * manifest.json, the last file of a checkpoint: sizes and SHA-256 of the others,
 * configuration, build and machine, and what the log was. Its own digest covers its canonical JSON text
 * without that digest, so that no bit of a checkpoint can change unseen.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt.h"
#include "json.h"
#include "util.h"

#define MANIFEST "manifest.json"
#define CANONICAL (JSON_INDENT(1) | JSON_SORT_KEYS)

static void digest(const json_t *root, char hex[65])
{
	char *text = json_dumps(root, CANONICAL);

	sha256_hex(text, strlen(text), hex);
	free(text);
}

static json_t *describe(const struct ckpt_file files[CKPT_FILES], const struct ckpt_state *st,
			const char *config)
{
	json_t *list = json_object(), *root;
	char hex[65];

	sha256_hex(config, strlen(config), hex);
	for (int i = 0; i < CKPT_FILES; i++)
		json_object_set_new(list, files[i].name,
				    json_pack("{s:I,s:s}", "bytes", (json_int_t)files[i].bytes,
					      "sha256", files[i].sha256));
	root = json_pack("{s:I,s:o,s:s,s:s,s:s,s:s,s:{s:I,s:s}}", "step", (json_int_t)st->step,
			 "files", list, "config_sha256", hex, "config", config,
			 "build", build_text(), "machine", st->machine,
			 "log", "bytes", (json_int_t)st->log.bytes, "sha256", st->log.sha256);
	if (!root)
		die_bug("manifest: the configuration is no UTF-8");
	digest(root, hex);
	json_object_set_new(root, "manifest_sha256", json_string(hex));
	return root;
}

int manifest_write(const char *folder, const struct ckpt_file files[CKPT_FILES],
		   const struct ckpt_state *st, const char *config)
{
	char *path = xasprintf("%s/" MANIFEST, folder);
	json_t *root = describe(files, st, config);
	char *text = json_dumps(root, CANONICAL);
	int err = file_put(path, text, strlen(text));

	free(text);
	free(path);
	json_decref(root);
	return err;
}

/* Digest of a file; 0 or -errno. */
static int digest_file(const char *path, uint64_t *bytes, char hex[65])
{
	enum { PIECE = 1 << 20 };
	int fd = file_open(path), err;
	struct sha256 sha;
	char *buf;
	ssize_t n;

	if (fd < 0)
		return -errno;
	buf = xmalloc(PIECE);
	sha256_init(&sha);
	*bytes = 0;
	while ((n = read(fd, buf, PIECE)) > 0 || (n < 0 && errno == EINTR)) {
		sha256_update(&sha, buf, MAX(n, 0));
		*bytes += MAX(n, 0);
	}
	err = n < 0 ? -errno : 0;
	sha256_final(&sha, hex);
	free(buf);
	close(fd);
	return err;
}

static char *check_file(const char *folder, const char *name, json_t *entry)
{
	json_int_t want = json_integer_value(json_object_get(entry, "bytes"));
	const char *sha = json_string_value(json_object_get(entry, "sha256"));
	char *path = xasprintf("%s/%s", folder, name), *wrong = NULL;
	uint64_t bytes = 0;
	char hex[65];
	int err = digest_file(path, &bytes, hex);

	if (!sha)
		wrong = xasprintf("%s/" MANIFEST ": does not list %s", folder, name);
	else if (err)
		wrong = xasprintf("%s: %s", path, file_error(-err));
	else if (bytes != (uint64_t)want)
		wrong = xasprintf("%s: %llu bytes, written were %lld", path,
				  (unsigned long long)bytes, (long long)want);
	else if (strcmp(hex, sha))
		wrong = xasprintf("%s: checksum does not match, the file was altered", path);
	free(path);
	return wrong;
}

/* The manifest itself: read, and true to its own digest. */
static char *open_manifest(const char *folder, json_t **root)
{
	char *path = xasprintf("%s/" MANIFEST, folder), *wrong = NULL;
	const char *why;
	json_t *own;
	char hex[65];

	*root = json_read(path, &why);
	if (!*root) {
		wrong = xasprintf("%s: %s", path, why);
		goto out;
	}
	own = json_incref(json_object_get(*root, "manifest_sha256"));
	json_object_del(*root, "manifest_sha256");
	digest(*root, hex);
	if (!json_is_string(own) || strcmp(hex, json_string_value(own)))
		wrong = xasprintf("%s: checksum does not match, the file was altered", path);
	json_decref(own);
out:
	free(path);
	return wrong;
}

/* Machine and log; false where one is missing. */
static bool unpack(json_t *root, struct ckpt_state *st)
{
	const char *machine, *sha256;
	json_int_t bytes;

	if (json_unpack(root, "{s:s,s:{s:I,s:s}}", "machine", &machine, "log", "bytes", &bytes,
			"sha256", &sha256))
		return false;
	snprintf(st->machine, sizeof(st->machine), "%s", machine);
	snprintf(st->log.sha256, sizeof(st->log.sha256), "%s", sha256);
	st->log.bytes = bytes;
	return true;
}

char *manifest_check(const char *folder, char **config, struct ckpt_state *st)
{
	static const char *const names[CKPT_FILES] = {
		"model.safetensors", "optim.safetensors", "state.json",
	};
	json_t *root, *files, *text;
	char *wrong = open_manifest(folder, &root);

	files = json_object_get(root, "files");
	text = json_object_get(root, "config");
	for (int i = 0; i < CKPT_FILES && !wrong; i++)
		wrong = check_file(folder, names[i], json_object_get(files, names[i]));
	*config = wrong || !json_is_string(text) ? NULL : xstrdup(json_string_value(text));
	if (!wrong && !*config)
		wrong = xasprintf("%s/" MANIFEST ": no configuration", folder);
	if (!wrong && !unpack(root, st))
		wrong = xasprintf("%s/" MANIFEST ": no machine and log", folder);
	json_decref(root);
	return wrong;
}
