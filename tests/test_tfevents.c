// SPDX-License-Identifier: MIT
/*
 * TensorBoard event files: known bytes, appending, cutting back, torn records.
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

static size_t size_of(const char *path)
{
	size_t n = 0;

	free(file_read(path, &n));
	return n;
}

/* Open, log steps from..to of one tag, close. */
static void log_steps(const char *name, int from, int to)
{
	struct tfevents *t = tfevents_open(scratch(name));

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

static void tfevents_cut_and_append(void)
{
	size_t five, ten;
	const char *path;
	int count;

	dir_make(scratch("cut"));
	log_steps("cut", 1, 5);
	path = event_file("cut", &count);
	five = size_of(path);
	log_steps("cut", 6, 10);
	event_file("cut", &count);
	ten = size_of(path);
	ok(count == 1 && ten == 2 * five - 40, "tfevents_open goes on with the file");
	ok(!tfevents_cut(scratch("cut"), 10, NULL) && size_of(path) == ten,
	   "tfevents_cut: nothing later");
	ok(!tfevents_cut(scratch("cut"), 5, NULL) && size_of(path) == five,
	   "tfevents_cut to a step");
	log_steps("cut", 6, 10);
	ok(size_of(path) == ten, "tfevents_open after a cut");
	ok(!tfevents_cut(scratch("cut"), 10, "val/loss") && size_of(path) == ten,
	   "tfevents_cut: no such tag");
	ok(!tfevents_cut(scratch("cut"), 6, "train/loss") && size_of(path) == five,
	   "tfevents_cut: the last step's tag as well");
	ok(!tfevents_cut(scratch("cut"), 0, NULL) && size_of(path) == 40,
	   "tfevents_cut to the start");
	ok(!tfevents_cut(scratch("nowhere"), 3, NULL), "tfevents_cut: no folder is fine");
	ok(!tfevents_open(scratch("nowhere")) && errno == ENOENT, "tfevents_open: errno");
}

/* Cut the file at every length: what stays is whole records, and it goes on. */
static void tfevents_cut_drops_torn_records(void)
{
	const size_t record = 16 + 32;	/* steps below 128 take one byte */
	const char *path;
	int count, bad = 0;
	uint8_t *whole;
	size_t n;

	dir_make(scratch("torn"));
	log_steps("torn", 1, 3);
	path = event_file("torn", &count);
	whole = file_read(path, &n);
	for (size_t size = 0; size <= n; size++) {
		put_file(path, whole, size);
		bad += tfevents_cut(scratch("torn"), 100, NULL) ||
		       size_of(path) != (size < 40 ? 0 : 40 + (size - 40) / record * record);
	}
	ok(!bad, "tfevents_cut_drops_torn_records: %d lengths wrong", bad);
	bad = 0;
	for (size_t at = 40 + record; at < 40 + 2 * record; at++) {
		put_file(path, whole, n);
		whole[at] ^= 1;
		put_file(path, whole, n);
		whole[at] ^= 1;
		bad += tfevents_cut(scratch("torn"), 100, NULL) || size_of(path) != 40 + record;
	}
	ok(!bad, "tfevents_cut drops from a damaged record on: %d bytes missed", bad);
	put_file(path, "", 0);
	log_steps("torn", 1, 3);
	ok(size_of(path) == n, "tfevents_open begins an empty file anew");
	free(whole);
}

static void tfevents_long_tag(void)
{
	struct tfevents *t = tfevents_open(scratch("torn"));
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
	tfevents_cut_and_append();
	tfevents_cut_drops_torn_records();
	tfevents_long_tag();
	scratch_close();
	return tap_done();
}
