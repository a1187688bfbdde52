/* SPDX-License-Identifier: MIT */
/*
 * Rows of decode state: put, filled and taken by position, as plain loops do it.
 */
#include "kernel.h"

enum { SEQ_GAP = 5, ROW_GAP = 2, SRC_GAP = 3 };	/* unused elements behind each */

static struct {
	struct cache_rows c;
	act_t *src, *last;
	int32_t *pos;	/* or lengths */
	long ld;
	int b, t;
} s;

static void call_put(void)
{
	k_cache_put(&s.c, s.src, s.ld, s.pos, s.b);
}

static void call_fill(void)
{
	k_cache_fill(&s.c, s.src, s.ld, s.pos, s.b, s.t);
}

static void call_last(void)
{
	k_last_rows(s.last, s.src, s.pos, s.b, s.t, s.c.width);
}

static long place(int i, int pos)
{
	return i * s.c.seq + (s.c.slots ? pos % s.c.slots : pos) * s.c.row;
}

/* One position of each sequence, each another: everything else stays. */
static void test_put(struct out *out, act_t *want)
{
	for (int i = 0; i < s.b; i++)
		s.pos[i] = (i * 5 + 3) % s.t;
	memcpy(want, out->before, out->bytes);
	for (int i = 0; i < s.b; i++)
		memcpy(want + place(i, s.pos[i]), s.src + i * s.ld, s.c.width * sizeof(*want));
	ok(threads_agree(call_put, out, 1) && !memcmp(out->x, want, out->bytes),
	   "cache_put_matches_loops %d of %d, width %d, ring %d", s.b, s.t, s.c.width, s.c.slots);
}

/* Lengths from 1 to t: what as many puts, one after the other, would have left. */
static void test_fill(struct out *out, act_t *want)
{
	for (int i = 0; i < s.b; i++)
		s.pos[i] = i ? (i * 7) % s.t + 1 : s.t;
	memcpy(want, out->before, out->bytes);
	for (int i = 0; i < s.b; i++)
		for (int u = 0; u < s.pos[i]; u++)
			memcpy(want + place(i, u), s.src + ((long)i * s.t + u) * s.ld,
			       s.c.width * sizeof(*want));
	ok(threads_agree(call_fill, out, 1) && !memcmp(out->x, want, out->bytes),
	   "cache_fill_matches_loops %d of %d, width %d, ring %d", s.b, s.t, s.c.width, s.c.slots);
}

static void test_cache(int b, int t, int width, int slots)
{
	long row = width + ROW_GAP, seq = (slots ? slots : t) * row + SEQ_GAP;
	size_t bytes = b * seq * sizeof(act_t);
	act_t *before = normals(b * seq), *want = xmalloc(bytes);
	struct out out = { guarded(bytes), bytes, before };

	s.b = b, s.t = t, s.ld = width + SRC_GAP;
	s.src = normals(b * t * s.ld);
	s.pos = xcalloc(b, sizeof(*s.pos));
	s.c = (struct cache_rows) { out.x, seq, row, slots, width };
	test_put(&out, want);
	test_fill(&out, want);
	free(s.pos), free(want);
	unguard(before), unguard(out.x), unguard(s.src);
}

static void test_last(int b, int t, int width)
{
	struct out out = { guarded(b * width * sizeof(act_t)), b * width * sizeof(act_t), NULL };
	bool good = true;

	s.b = b, s.t = t, s.c.width = width;
	s.src = normals((size_t)b * t * width), s.last = out.x;
	s.pos = xcalloc(b, sizeof(*s.pos));
	for (int i = 0; i < b; i++)
		s.pos[i] = i ? (i * 7) % t + 1 : t;
	good = threads_agree(call_last, &out, 1);
	for (int i = 0; i < b; i++)
		good &= !memcmp(s.last + i * width, s.src + ((long)i * t + s.pos[i] - 1) * width,
				width * sizeof(act_t));
	ok(good, "last_rows_matches_loops %d x %d x %d", b, t, width);
	free(s.pos);
	unguard(out.x), unguard(s.src);
}

int main(void)
{
	static const int slots[] = { 0, 1, 4, 1000 };

	device_open(0);
	for (size_t i = 0; i < ARRAY_SIZE(slots); i++) {
		test_cache(1, 1, 1, slots[i]);
		test_cache(3, 9, 5, slots[i]);
		test_cache(4, 200, 64, slots[i]);
	}
	test_last(1, 1, 1);
	test_last(4, 19, 33);
	return tap_done();
}
