// SPDX-License-Identifier: MIT
/*
 * JSON files.
 */
#include <errno.h>
#include <stdlib.h>

#include "json.h"
#include "util.h"

json_t *json_read(const char *path, const char **why)
{
	size_t n;
	char *text = (char *)file_read(path, &n);
	json_t *root;

	if (!text) {
		*why = file_error(errno);
		return NULL;
	}
	root = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
	free(text);
	if (json_is_object(root))
		return root;
	json_decref(root);
	*why = "not a JSON object";
	return NULL;
}
