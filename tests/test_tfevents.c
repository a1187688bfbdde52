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
		tfevents_scalar(t, i, "train/loss", 1.5);
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
	static const uint8_t scalar[] = { 0x10, 0xac, 0x02, 0x2a, 19, 0x0a, 17, 0x0a, 10, 't', 'r',
					  'a', 'i', 'n', '/', 'l', 'o', 's', 's', 0x15, 0, 0, 0xc0,
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

int main(void)
{
	scratch_open();
	tfevents_bytes();
	tfevents_create_begins_anew();
	tfevents_long_tag();
	scratch_close();
	return tap_done();
}
