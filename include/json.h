/* SPDX-License-Identifier: MIT */
/**
 * DOC: JSON files
 */
#ifndef TENON_JSON_H
#define TENON_JSON_H

#include <jansson.h>

/**
 * json_read() - the object that a file holds; a name twice is refused
 * @why: gets what is wrong where there is none, static storage
 *
 * Returns: a new reference, or NULL.
 */
json_t *json_read(const char *path, const char **why);

#endif
