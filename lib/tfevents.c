// SPDX-License-Identifier: MIT
/*
 * TensorBoard event files. Record format: tensorflow/core/lib/io/record_writer.h;
 * messages: tensorflow/core/util/event.proto, framework/summary.proto and tensor.proto, and
 * tensorboard/plugins/hparams/plugin_data.proto.
 */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "protobuf.h"
#include "tfevents.h"

#define PREFIX "events.out.tfevents."
#define VERSION "brain.Event:2"

enum {
	RECORD_HEAD = 12,	/* length and its checksum */
	RECORD_TAIL = 4,	/* checksum of the data */
	TAG_MAX = 224,
};

/* Field numbers of the messages. */
enum { EVENT_WALL_TIME = 1, EVENT_STEP = 2, EVENT_VERSION = 3, EVENT_SUMMARY = 5 };
enum { SUMMARY_VALUE = 1 };
enum { VALUE_TAG = 1, VALUE_SIMPLE = 2, VALUE_TENSOR = 8, VALUE_METADATA = 9 };
enum { METADATA_PLUGIN = 1, METADATA_CLASS = 4, PLUGIN_NAME = 1, PLUGIN_CONTENT = 2 };
enum { TENSOR_DTYPE = 1, TENSOR_SHAPE = 2, TENSOR_STRING = 8, SHAPE_DIM = 2 };
enum { HPARAMS_START = 3, HPARAMS_END = 4, START_HPARAMS = 1, END_STATUS = 1 };
enum { MAP_KEY = 1, MAP_VALUE = 2, ANY_NUMBER = 2, ANY_STRING = 3, ANY_BOOL = 4 };

/* Values of enumerations in them. */
enum { DT_FLOAT = 1, DT_STRING = 7, DATA_CLASS_TENSOR = 2, STATUS_SUCCESS = 1 };

struct tfevents {
	struct file_writer *f;
};

/* ---- records --------------------------------------------------------------- */

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

static struct pb event_now(void)
{
	struct pb event = { 0 };
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	pb_double(&event, EVENT_WALL_TIME, ts.tv_sec + ts.tv_nsec * 1e-9);
	return event;
}

/* One record by one write, so that only the last can be torn; frees @event. */
static int write_event(struct tfevents *t, struct pb *event)
{
	size_t n = event->n, size = RECORD_HEAD + n + RECORD_TAIL;
	uint8_t *rec = xmalloc(size);
	int err;

	put_le(rec, n, 8);
	put_le(rec + 8, masked_crc(rec, 8), 4);
	memcpy(rec + RECORD_HEAD, event->p, n);
	put_le(rec + RECORD_HEAD + n, masked_crc(event->p, n), 4);
	err = file_write(t->f, rec, size);
	free(rec);
	pb_free(event);
	return err;
}

/* A summary of one value; frees @value. */
static int write_value(struct tfevents *t, int64_t step, struct pb *value)
{
	struct pb event = event_now(), summary = { 0 };

	pb_message(&summary, SUMMARY_VALUE, value);
	pb_int(&event, EVENT_STEP, step);
	pb_message(&event, EVENT_SUMMARY, &summary);
	return write_event(t, &event);
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
	int err = clear(dir);
	struct tfevents *t;
	struct pb event;

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
	event = event_now();
	pb_string(&event, EVENT_VERSION, VERSION);
	if (!err)
		err = write_event(t, &event);
	if (!err)
		return t;
	if (t->f)
		file_finish(t->f);
	free(t);
	errno = -err;
	return NULL;
}

/* ---- values -------------------------------------------------------------------- */

int tfevents_scalar(struct tfevents *t, int64_t step, const char *tag, double number)
{
	struct pb value = { 0 };

	if (strlen(tag) > TAG_MAX)
		return -ENAMETOOLONG;
	pb_string(&value, VALUE_TAG, tag);
	pb_float(&value, VALUE_SIMPLE, number);
	return write_value(t, step, &value);
}

/* What a plugin shows: @content (freed) for itself, a tensor for the value; step 0. */
static int write_plugin(struct tfevents *t, const char *tag, const char *plugin,
			struct pb *content, struct pb *tensor)
{
	struct pb value = { 0 }, metadata = { 0 }, data = { 0 };

	pb_string(&data, PLUGIN_NAME, plugin);
	pb_message(&data, PLUGIN_CONTENT, content);
	pb_message(&metadata, METADATA_PLUGIN, &data);
	pb_int(&metadata, METADATA_CLASS, DATA_CLASS_TENSOR);
	pb_string(&value, VALUE_TAG, tag);
	pb_message(&value, VALUE_TENSOR, tensor);
	pb_message(&value, VALUE_METADATA, &metadata);
	return write_value(t, 0, &value);
}

int tfevents_text(struct tfevents *t, const char *tag, const char *text)
{
	struct pb tensor = { 0 }, content = { 0 };

	pb_int(&tensor, TENSOR_DTYPE, DT_STRING);
	pb_bytes(&tensor, TENSOR_SHAPE, NULL, 0);
	pb_string(&tensor, TENSOR_STRING, text);
	return write_plugin(t, tag, "text", &content, &tensor);
}

/* The hparams plugin reads metadata alone; its tensor has no elements. */
static int write_hparams(struct tfevents *t, const char *tag, int field, struct pb *session)
{
	struct pb tensor = { 0 }, content = { 0 }, shape = { 0 };

	pb_bytes(&shape, SHAPE_DIM, NULL, 0);
	pb_int(&tensor, TENSOR_DTYPE, DT_FLOAT);
	pb_message(&tensor, TENSOR_SHAPE, &shape);
	pb_message(&content, field, session);
	return write_plugin(t, tag, "hparams", &content, &tensor);
}

int tfevents_hparams(struct tfevents *t, const struct tfevents_hparam *list, int nr)
{
	struct pb session = { 0 };

	for (int i = 0; i < nr; i++) {
		struct pb entry = { 0 }, any = { 0 };

		if (list[i].kind == HPARAM_TEXT)
			pb_string(&any, ANY_STRING, list[i].text);
		else if (list[i].kind == HPARAM_NUMBER)
			pb_double(&any, ANY_NUMBER, list[i].number);
		else
			pb_int(&any, ANY_BOOL, list[i].number != 0);
		pb_string(&entry, MAP_KEY, list[i].name);
		pb_message(&entry, MAP_VALUE, &any);
		pb_message(&session, START_HPARAMS, &entry);
	}
	return write_hparams(t, "_hparams_/session_start_info", HPARAMS_START, &session);
}

int tfevents_success(struct tfevents *t)
{
	struct pb session = { 0 };

	pb_int(&session, END_STATUS, STATUS_SUCCESS);
	return write_hparams(t, "_hparams_/session_end_info", HPARAMS_END, &session);
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
