// SPDX-License-Identifier: MIT
/*
 * TensorBoard event files. Record format: tensorflow/core/lib/io/record_writer.h;
 * messages: tensorflow/core/util/event.proto and framework/summary.proto, of which four
 * fields are needed and encoded by hand.
 */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tfevents.h"

#define PREFIX "events.out.tfevents."
#define VERSION "brain.Event:2"

enum {
	RECORD_HEAD = 12,	/* length and its checksum */
	RECORD_TAIL = 4,	/* checksum of the data */
	EVENT_MAX = 512,	/* an encoded scalar: tags are short */
	TAG_MAX = 256,
};

/* Field numbers of the messages, and protobuf's wire types. */
enum { EVENT_WALL_TIME = 1, EVENT_STEP = 2, EVENT_VERSION = 3, EVENT_SUMMARY = 5 };
enum { SUMMARY_VALUE = 1, VALUE_TAG = 1, VALUE_SIMPLE = 2 };
enum { WIRE_VARINT, WIRE_FIXED64, WIRE_BYTES, WIRE_FIXED32 = 5 };

struct tfevents {
	struct file_writer *f;
};

/* ---- encoding ------------------------------------------------------------ */

static void put_le(uint8_t *p, uint64_t v, int n)
{
	for (int i = 0; i < n; i++)
		p[i] = v >> 8 * i;
}

/* CRC-32C (Castagnoli polynomial, reflected), rotated and offset as records have it. */
static uint32_t masked_crc(const uint8_t *p, size_t n)
{
	uint32_t crc = ~0u;

	for (; n; n--) {
		crc ^= *p++;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
	}
	crc = ~crc;
	return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static uint8_t *put_varint(uint8_t *p, uint64_t v)
{
	for (; v >= 0x80; v >>= 7)
		*p++ = v | 0x80;
	*p++ = v;
	return p;
}

static uint8_t *put_bytes(uint8_t *p, int field, const void *data, size_t n)
{
	*p++ = field << 3 | WIRE_BYTES;
	p = put_varint(p, n);
	memcpy(p, data, n);
	return p + n;
}

static uint8_t *put_fixed(uint8_t *p, int field, const void *value, int n)
{
	uint64_t bits = 0;

	memcpy(&bits, value, n);
	*p++ = field << 3 | (n == 8 ? WIRE_FIXED64 : WIRE_FIXED32);
	put_le(p, bits, n);
	return p + n;
}

static uint8_t *put_wall_time(uint8_t *p)
{
	struct timespec ts;
	double wall;

	clock_gettime(CLOCK_REALTIME, &ts);
	wall = ts.tv_sec + ts.tv_nsec * 1e-9;
	return put_fixed(p, EVENT_WALL_TIME, &wall, 8);
}

/* One record by one write, so that only the last can be torn. */
static int write_record(struct file_writer *f, const uint8_t *event, size_t n)
{
	uint8_t rec[RECORD_HEAD + EVENT_MAX + RECORD_TAIL];

	put_le(rec, n, 8);
	put_le(rec + 8, masked_crc(rec, 8), 4);
	memcpy(rec + RECORD_HEAD, event, n);
	put_le(rec + RECORD_HEAD + n, masked_crc(event, n), 4);
	return file_write(f, rec, RECORD_HEAD + n + RECORD_TAIL);
}

/* ---- the folder ---------------------------------------------------------- */

static int is_events(const struct dirent *e)
{
	return !strncmp(e->d_name, PREFIX, strlen(PREFIX));
}

/* No event file stays. Returns: 0 or -errno. */
static int clear(const char *dir)
{
	struct dirent **list;
	int n = scandir(dir, &list, is_events, NULL), err = n < 0 ? -errno : 0;

	for (int i = 0; i < n; i++) {
		char *path = xasprintf("%s/%s", dir, list[i]->d_name);

		if (!err)
			err = dir_remove(path);
		free(path);
		free(list[i]);
	}
	if (n >= 0)
		free(list);
	return err;
}

struct tfevents *tfevents_create(const char *dir)
{
	char host[HOST_NAME_MAX + 1] = "localhost", *path;
	uint8_t event[EVENT_MAX], *end;
	struct tfevents *t;
	int err = clear(dir);

	if (err) {
		errno = -err;
		return NULL;
	}
	gethostname(host, sizeof(host) - 1);
	path = xasprintf("%s/" PREFIX "%010lld.%s", dir, (long long)time(NULL), host);
	t = xcalloc(1, sizeof(*t));
	t->f = file_append(path);
	err = t->f ? 0 : -errno;
	free(path);
	end = put_bytes(put_wall_time(event), EVENT_VERSION, VERSION, strlen(VERSION));
	if (!err)
		err = write_record(t->f, event, end - event);
	if (!err)
		return t;
	if (t->f)
		file_finish(t->f);
	free(t);
	errno = -err;
	return NULL;
}

int tfevents_scalar(struct tfevents *t, int64_t step, const char *tag, double value)
{
	uint8_t event[EVENT_MAX], summary[TAG_MAX + 16], val[TAG_MAX + 8], *p, *s;
	float simple = value;
	size_t len = strlen(tag);

	if (len > TAG_MAX - 32)
		return -ENAMETOOLONG;
	p = put_bytes(val, VALUE_TAG, tag, len);
	p = put_fixed(p, VALUE_SIMPLE, &simple, 4);
	s = put_bytes(summary, SUMMARY_VALUE, val, p - val);
	p = put_wall_time(event);
	*p++ = EVENT_STEP << 3 | WIRE_VARINT;
	p = put_varint(p, step);
	p = put_bytes(p, EVENT_SUMMARY, summary, s - summary);
	return write_record(t->f, event, p - event);
}

int tfevents_sync(struct tfevents *t)
{
	return file_sync(t->f);
}

int tfevents_close(struct tfevents *t)
{
	int err = file_finish(t->f);

	free(t);
	return err;
}
