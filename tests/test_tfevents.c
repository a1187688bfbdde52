// SPDX-License-Identifier: MIT
/*
 * TensorBoard event files: known bytes, one file a folder, faults.
 */
#include <dirent.h>
#include <errno.h>

#include "scratch.h"
#include "tfevents.h"

/* The only event file of the folder @name, and how many there are. */
static const char *event_file(const char *name, int *count)
{
	static char path[1024];
	DIR *d = opendir(scratch(name));
	struct dirent *e;

	*count = 0;
	while ((e = readdir(d)))
		if (!strncmp(e->d_name, "events.out.tfevents.", 20)) {
			snprintf(path, sizeof(path), "%s/%s", scratch(name), e->d_name);
			++*count;
		}
	closedir(d);
	return path;
}

/* Open, log steps from..to of one tag, close. */
static void log_steps(const char *name, int from, int to)
{
	struct tfevents *t = tfevents_create(scratch(name));

	for (int i = from; i <= to; i++)
		tfevents_scalar(t, i, "loss/train", 1.5);
	tfevents_close(t);
}

/*
 * The layout of the first two records. head24: the length 24 and its masked CRC-32C,
 * from a second program that gives the published 0xe3069283 for "123456789".
 */
static void tfevents_bytes(void)
{
	static const uint8_t version[] = { 0x1a, 13, 'b', 'r', 'a', 'i', 'n', '.', 'E', 'v', 'e',
					   'n', 't', ':', '2' };
	static const uint8_t scalar[] = { 0x10, 0xac, 0x02, 0x2a, 19, 0x0a, 17, 0x0a, 10, 'l', 'o',
					  's', 's', '/', 't', 'r', 'a', 'i', 'n', 0x15, 0, 0, 0xc0,
					  0x3f };
	static const uint8_t head24[] = { 24, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22 };
	size_t n;
	uint8_t *p;
	int count;

	dir_make(scratch("bytes"));
	log_steps("bytes", 300, 300);
	p = file_read(event_file("bytes", &count), &n);
	ok(count == 1 && n == 16 + 24 + 16 + 33, "tfevents_bytes: one file, two records, %zu", n);
	ok(!memcmp(p, head24, 12), "tfevents_bytes: length and its checksum");
	ok(p[12] == 0x09 && !memcmp(p + 21, version, 15), "tfevents_bytes: version event");
	ok(p[40] == 33 && p[52] == 0x09 && !memcmp(p + 61, scalar, 24),
	   "tfevents_bytes: step 300, tag, value");
	free(p);
}

/* A new file takes the place of those there, whole, torn or many; nothing else goes. */
static void tfevents_create_begins_anew(void)
{
	size_t n, again;
	uint8_t *p, *q;
	int count;

	dir_make(scratch("anew"));
	put_file(scratch("anew/metrics.jsonl"), "{}", 2);
	put_file(scratch("anew/events.out.tfevents.0000000001.old"), "torn", 4);
	put_file(scratch("anew/events.out.tfevents.0000000002.old"), "", 0);
	log_steps("anew", 1, 5);
	p = file_read(event_file("anew", &count), &n);
	ok(count == 1 && n == 40 + 5 * 48, "tfevents_create: one file, from the start, %zu", n);
	log_steps("anew", 1, 5);
	q = file_read(event_file("anew", &count), &again);
	ok(count == 1 && again == n, "tfevents_create: the same again");
	for (size_t at = 0; at < n; at += 16 + p[at]) {
		memset(p + at + 13, 0, 8);	/* wall time, and the checksum over it */
		memset(q + at + 13, 0, 8);
		memset(p + at + 12 + p[at], 0, 4);
		memset(q + at + 12 + q[at], 0, 4);
	}
	ok(!memcmp(p, q, n), "tfevents_create: the same bytes but for wall times");
	ok(file_holds(scratch("anew/metrics.jsonl"), "{}", 2), "tfevents_create: other files stay");
	ok(!tfevents_create(scratch("nowhere")) && errno == ENOENT, "tfevents_create: errno");
	free(p);
	free(q);
}

static void tfevents_long_tag(void)
{
	struct tfevents *t = tfevents_create(scratch("anew"));
	char tag[300];

	memset(tag, 'x', sizeof(tag));
	tag[299] = 0;
	ok(tfevents_scalar(t, 1, tag, 1) == -ENAMETOOLONG, "tfevents_scalar: long tag");
	tag[220] = 0;
	ok(!tfevents_scalar(t, INT64_MAX, tag, 1) && !tfevents_sync(t) && !tfevents_close(t),
	   "tfevents_scalar: largest step");
}

/* Does the file hold these bytes, once? */
static bool holds(const uint8_t *p, size_t n, const void *bytes, size_t nr)
{
	int found = 0;

	for (size_t i = 0; i + nr <= n; i++)
		found += !memcmp(p + i, bytes, nr);
	return found == 1;
}

/*
 * A text longer than any buffer, and every kind of hyper-parameter. The bytes are those that
 * TensorBoard's own classes (tensorboard 2.21) serialize to.
 */
static void tfevents_plugins(void)
{
	static const uint8_t text_head[] = { 0x0a, 0x03, 'r', 'u', 'n', 0x42, 0xa9, 0x46, 0x08, 7, 0x12,
					     0, 0x42, 0xa2, 0x46, 'x', 'x' };
	static const uint8_t metadata[] = { 0x4a, 12, 0x0a, 8, 0x0a, 4, 't', 'e', 'x', 't', 0x12, 0,
					    0x20, 2 };
	static const uint8_t start[] = { 0x1a, 42, 0x0a, 14, 0x0a, 1, 'a', 0x12, 9, 0x11, 0, 0, 0, 0, 0,
					 0, 0xf8, 0x3f, 0x0a, 7, 0x0a, 1, 'b', 0x12, 2, 0x20, 1, 0x0a,
					 15, 0x0a, 1, 'c', 0x12, 10, 0x1a, 8, 'm', 'h', 'a', ' ', 'm',
					 'l', 'p', '2' };
	static const uint8_t end[] = { 0x0a, 7, 'h', 'p', 'a', 'r', 'a', 'm', 's', 0x12, 4, 0x22, 2,
				       0x08, 1 };
	const struct tfevents_hparam list[] = {
		{ .name = "a", .kind = HPARAM_NUMBER, .number = 1.5 },
		{ .name = "b", .kind = HPARAM_SWITCH, .number = 1 },
		{ .name = "c", .kind = HPARAM_TEXT, .text = "mha mlp2" },
	};
	char text[8995];
	struct tfevents *t;
	uint8_t *p;
	size_t n;
	int count;

	memset(text, 'x', sizeof(text));
	text[sizeof(text) - 1] = 0;
	dir_make(scratch("plugins"));
	t = tfevents_create(scratch("plugins"));
	ok(!tfevents_text(t, "run", text) && !tfevents_hparams(t, list, 3) && !tfevents_success(t) &&
	   !tfevents_close(t), "tfevents_plugins: written");
	p = file_read(event_file("plugins", &count), &n);
	ok(holds(p, n, text_head, sizeof(text_head)) && holds(p, n, metadata, sizeof(metadata)),
	   "tfevents_text: tensor and plugin");
	ok(holds(p, n, start, sizeof(start)), "tfevents_hparams: number, switch, text");
	ok(holds(p, n, end, sizeof(end)), "tfevents_success");
	free(p);
}

int main(void)
{
	scratch_open();
	tfevents_bytes();
	tfevents_create_begins_anew();
	tfevents_long_tag();
	tfevents_plugins();
	scratch_close();
	return tap_done();
}
