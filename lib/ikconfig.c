// SPDX-License-Identifier: MIT
/*
 * What the binary says about itself: the .config it was built from, embedded
 * compressed (lib/config-gz.o, made by the build), git state and compiler.
 */
#include <string.h>
#include <zlib.h>

#include <generated/build.h>

#include "util.h"

extern const unsigned char tenon_config_gz[], tenon_config_gz_end[];

/* Decompress the whole embedded file; the caller owns the text. */
static char *config_inflate(void)
{
	const size_t nr_in = tenon_config_gz_end - tenon_config_gz;
	const unsigned char *tail = tenon_config_gz + nr_in - 4;
	/* A gzip file ends with the length of its content, little-endian. */
	const size_t size = tail[0] | tail[1] << 8 | tail[2] << 16 | (size_t)tail[3] << 24;
	char *text = xmalloc(size + 1);
	z_stream z = {
		.next_in = (Bytef *)tenon_config_gz,
		.avail_in = nr_in,
		.next_out = (Bytef *)text,
		.avail_out = size,
	};

	/* 16: a gzip header, not a zlib one.*/
	int code = inflateInit2(&z, 16 + MAX_WBITS);

	if (code == Z_OK)
		code = inflate(&z, Z_FINISH);
	if (code == Z_MEM_ERROR)
		die("no memory to decompress the embedded .config");
	if (code != Z_STREAM_END)
		die_bug("the embedded .config does not decompress");
	inflateEnd(&z);
	text[size] = '\0';
	return text;
}

const char *config_text(void)
{
	static char *text;

	if (!text)
		text = config_inflate();
	return text;
}

const char *config_hash(void)
{
	static char hex[65];

	if (!hex[0])
		sha256_hex(config_text(), strlen(config_text()), hex);
	return hex;
}

const char *build_text(void)
{
	return BUILD_TEXT;
}
