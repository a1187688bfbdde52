/* SPDX-License-Identifier: MIT */
/*
 * What reader and writer of safetensors files share.
 * Format: https://github.com/huggingface/safetensors, README.
 */
#ifndef TENON_SAFETENSORS_FORMAT_H
#define TENON_SAFETENSORS_FORMAT_H

#include <string.h>

#include "safetensors.h"

#define HEADER_MAX 100000000ull		/* the format's limit */
#define META "__metadata__"

/* Bytes of one element, 0 for an unknown type. */
static inline int dtype_bytes(const char *name)
{
	static const struct { const char name[8]; int bytes; } dtypes[] = {
		{ "F64", 8 }, { "F32", 4 }, { "F16", 2 }, { "BF16", 2 }, { "F8_E4M3", 1 },
		{ "F8_E5M2", 1 }, { "I64", 8 }, { "I32", 4 }, { "I16", 2 }, { "I8", 1 },
		{ "U64", 8 }, { "U32", 4 }, { "U16", 2 }, { "U8", 1 }, { "BOOL", 1 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(dtypes); i++)
		if (!strncmp(dtypes[i].name, name, sizeof(dtypes[i].name)))
			return dtypes[i].bytes;
	return 0;
}

#endif
