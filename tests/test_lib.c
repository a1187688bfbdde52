// SPDX-License-Identifier: MIT
/*
 * lib/: checksum, random numbers, files.
 */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <zlib.h>

#include "scratch.h"

/* ---- SHA-256 ------------------------------------------------------------- */

/* FIPS 180-4 examples, and the length that needs a second padding block. */
static void sha256_known_answers(void)
{
	static const struct { const char *text, *hex; } kat[] = {
		{ "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
		{ "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
		{ "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
		  "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1" },
		{ "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmno"
		  "pqklmnopqrlmnopqrsmnopqrstnopqrstu",
		  "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1" },
	};
	char hex[65], *million = xmalloc(1000000);

	for (size_t i = 0; i < ARRAY_SIZE(kat); i++) {
		sha256_hex(kat[i].text, strlen(kat[i].text), hex);
		ok(!strcmp(hex, kat[i].hex), "sha256_known_answers %zu", i);
	}
	memset(million, 'a', 1000000);
	sha256_hex(million, 1000000, hex);
	ok(!strcmp(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
	   "sha256_known_answers million");
	free(million);
}

static void sha256_pieces_match_whole(void)
{
	uint8_t buf[300];
	char whole[65], pieces[65];
	int bad = 0;

	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = rng_u64(1, 2, i);
	for (size_t n = 0; n <= sizeof(buf); n++) {
		struct sha256 s;

		sha256_hex(buf, n, whole);
		sha256_init(&s);
		for (size_t at = 0, take; at < n; at += take) {
			take = MIN(n - at, 1 + rng_u64(n, 3, at) % 90);
			sha256_update(&s, buf + at, take);
		}
		sha256_final(&s, pieces);
		bad += !!strcmp(whole, pieces);
	}
	ok(!bad, "sha256_pieces_match_whole: %d lengths differ", bad);
}

/* ---- random numbers ------------------------------------------------------ */

/* Random123's known answers: zeros, ones, digits of pi. */
static void philox_known_answers(void)
{
	static const uint32_t kat[3][10] = {
		{ 0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 },
		{ ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd },
		{ 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0,
		  0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 },
	};
	uint32_t out[4];

	for (int i = 0; i < 3; i++) {
		philox(kat[i] + 4, kat[i], out);
		ok(!memcmp(out, kat[i] + 6, sizeof(out)), "philox_known_answers %d", i);
	}
}

/* seed is the key, (index, stream) the counter: no argument may swallow another. */
static void rng_arguments_are_words(void)
{
	const uint64_t index = 0x85a308d3243f6a88, stream = 0x0370734413198a2e;
	const uint64_t seed = 0x299f31d0a4093822;

	ok(rng_u64(seed, stream, index) == 0x94fdccebd16cfe09, "rng_arguments_are_words");
}

static void rng_moments(void)
{
	enum { N = 100000 };
	double u = 0, uu = 0, z = 0, zz = 0, z4 = 0, low = 1, high = 0;

	for (int i = 0; i < N; i++) {
		double x = rng_uniform(5, 6, i), y = rng_normal(5, 7, i);

		u += x / N;
		uu += x * x / N;
		z += y / N;
		zz += y * y / N;
		z4 += y * y * y * y / N;
		low = fmin(low, x);
		high = fmax(high, x);
	}
	/* five standard errors of each mean over N draws */
	ok(low > 0 && high < 1, "rng_moments: uniform is inside (0, 1)");
	ok(fabs(u - 0.5) < 5 * sqrt(1. / 12 / N), "rng_moments: uniform mean %g", u);
	ok(fabs(uu - 1. / 3) < 5 * sqrt(4. / 45 / N), "rng_moments: uniform square %g", uu);
	ok(fabs(z) < 5 * sqrt(1. / N), "rng_moments: normal mean %g", z);
	ok(fabs(zz - 1) < 5 * sqrt(2. / N), "rng_moments: normal variance %g", zz);
	ok(fabs(z4 - 3) < 5 * sqrt(96. / N), "rng_moments: normal fourth moment %g", z4);
}

static void rng_permute_is_a_bijection(void)
{
	static const int sizes[] = { 1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 1000, 4097, 20000 };

	for (size_t s = 0; s < ARRAY_SIZE(sizes); s++) {
		int n = sizes[s], bad = 0, fixed = 0;
		char *seen = xcalloc(n, 1);

		for (int i = 0; i < n; i++) {
			uint64_t to = rng_permute(9, s, i, n);

			bad += to >= (uint64_t)n || seen[to]++;
			fixed += to == (uint64_t)i;
		}
		/* a random permutation has one fixed point on average, ten once in 3e6 */
		ok(!bad && (n < 16 || fixed < 10), "rng_permute_is_a_bijection n %d, %d fixed", n,
		   fixed);
		free(seen);
	}
}

static void rng_permute_depends_on_key(void)
{
	int same_seed = 0, same_stream = 0;

	for (int i = 0; i < 1000; i++) {
		same_seed += rng_permute(1, 1, i, 1000) == rng_permute(2, 1, i, 1000);
		same_stream += rng_permute(1, 1, i, 1000) == rng_permute(1, 2, i, 1000);
	}
	ok(same_seed < 10 && same_stream < 10, "rng_permute_depends_on_key: %d %d", same_seed,
	   same_stream);
	ok(rng_permute(1, 1, 1ull << 40, 1ull << 62) < 1ull << 62, "rng_permute_takes_large_n");
}

static void hash_name_known_answers(void)
{
	ok(hash_name("") == 0xcbf29ce484222325 && hash_name("a") == 0xaf63dc4c8601ec8c &&
	   hash_name("foobar") == 0x85944171f73967e8, "hash_name_known_answers");
}

/* ---- files --------------------------------------------------------------- */

static bool exists(const char *path)
{
	struct stat st;

	return !lstat(path, &st);
}

static void file_write_round_trip(void)
{
	const char *path = scratch("round"), *partial = scratch("round.partial");
	struct file_writer *f = file_create(path);
	char hex[65], want[65];

	ok(!file_write(f, "hello ", 6) && !file_write(f, "world", 5), "file_write_round_trip");
	ok(!exists(path) && exists(partial), "file_create: no final name before the end");
	file_sha256(f, hex);
	sha256_hex("hello world", 11, want);
	ok(file_size(f) == 11 && !strcmp(hex, want), "file_create: size and checksum");
	ok(!file_finish(f) && file_holds(path, "hello world", 11) && !exists(partial),
	   "file_finish: final name");
	f = file_create(path);
	file_write(f, "x", 1);
	file_cancel(f);
	ok(file_holds(path, "hello world", 11) && !exists(partial), "file_cancel_keeps_the_old");
}

static void file_append_goes_on(void)
{
	const char *path = scratch("log");
	struct file_writer *f = file_append(path);

	file_write(f, "one\n", 4);
	ok(file_holds(path, "one\n", 4), "file_append: in the file at once");
	file_finish(f);
	f = file_append(path);
	ok(file_size(f) == 4 && !file_write(f, "two\n", 4) && file_size(f) == 8 &&
	   !file_sync(f) && !file_finish(f) && file_holds(path, "one\ntwo\n", 8),
	   "file_append_goes_on");
	ok(!file_truncate(path, 4) && file_holds(path, "one\n", 4), "file_truncate");
	ok(file_truncate(scratch("none"), 4) == -ENOENT, "file_truncate: missing");
}

/* A file that outgrows the limit fails half-way, as on a full disk. */
static void file_write_failure_keeps_the_old(void)
{
	const char *path = scratch("full");
	struct rlimit old, small = { 4096, 0 };
	struct file_writer *f;
	static char big[8192];
	int first, again, end;

	put_file(path, "old", 3);
	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &old);
	small.rlim_max = old.rlim_max;
	setrlimit(RLIMIT_FSIZE, &small);
	f = file_create(path);
	first = file_write(f, big, sizeof(big));
	again = file_write(f, "x", 1);
	end = file_finish(f);
	setrlimit(RLIMIT_FSIZE, &old);
	ok(first == -EFBIG && again == -EFBIG && end == -EFBIG, "file_write: the error stays");
	ok(file_holds(path, "old", 3) && !exists(scratch("full.partial")),
	   "file_write_failure_keeps_the_old");
	f = file_create("/dev/full");
	ok(file_write(f, big, 1) == -ENOSPC && file_finish(f) == -ENOSPC && exists("/dev/full"),
	   "file_create: devices directly");
	ok(!file_create(scratch("no/such/folder")) && errno == ENOENT, "file_create: errno");
}

static void put_gzip(const char *path, const void *buf, size_t n)
{
	gzFile gz = gzopen(path, "wb");

	gzwrite(gz, buf, n);
	gzclose(gz);
}

static void file_read_recognises_gzip(void)
{
	enum { N = 100000 };
	uint8_t *data = xmalloc(N), *packed;
	size_t n;

	for (int i = 0; i < N; i++)
		data[i] = rng_u64(1, 1, i) % 50;
	put_gzip(scratch("a.gz"), data, N);
	put_gzip(scratch("text"), data, N);
	ok(file_holds(scratch("a.gz"), data, N) && file_holds(scratch("text"), data, N),
	   "file_read_recognises_gzip by content");
	put_file(scratch("plain.gz"), "plain", 5);
	ok(file_holds(scratch("plain.gz"), "plain", 5), "file_read: a plain .gz");
	put_file(scratch("empty"), "", 0);
	ok(file_holds(scratch("empty"), "", 0), "file_read: empty");
	ok(truncate(scratch("text"), 20000) == 0 && !file_read(scratch("text"), &n) &&
	   errno == EBADMSG, "file_read: torn gzip is EBADMSG");
	packed = xmalloc(N);
	FILE *f = fopen(scratch("a.gz"), "rb");
	n = fread(packed, 1, N, f);
	fclose(f);
	packed[n / 2] ^= 0x55;
	put_file(scratch("bad"), packed, n);
	ok(!file_read(scratch("bad"), &n) && errno == EBADMSG, "file_read: damaged gzip");
	ok(!file_read(scratch("none"), &n) && errno == ENOENT, "file_read: missing");
	ok(!file_read(scratch_dir, &n) && errno == EISDIR, "file_read: a folder");
	free(packed);
	free(data);
}

/* ---- gzip that is not whole --------------------------------------------------- */

static uint8_t *load(const char *path, size_t *n)
{
	FILE *f = fopen(path, "rb");
	uint8_t *p = xmalloc(1 << 17);

	*n = f ? fread(p, 1, 1 << 17, f) : 0;
	if (f)
		fclose(f);
	return p;
}

static void refuses_gzip(const char *what, size_t at, const uint8_t *p, size_t n)
{
	uint8_t *text;
	size_t size;

	put_file(scratch("forged"), p, n);
	errno = 0;
	text = file_read(scratch("forged"), &size);
	ok(!text && errno == EBADMSG, "file_read refuses gzip: %s (%zu)", what, at);
	free(text);
}

/*
 * Members of @n bytes each, one behind the other: every one must be whole, and nothing
 * else may follow. @HEADER: bytes of which gzip itself says nothing.
 */
static void file_read_refuses_gzip(void)
{
	enum { N = 3000, HEADER = 10, PLACES = 12 };
	uint8_t data[N], *one, *p;
	size_t n, size;

	for (int i = 0; i < N; i++)
		data[i] = rng_u64(1, 1, i) % 50;
	put_gzip(scratch("one.gz"), data, N);
	one = load(scratch("one.gz"), &n);
	p = xmalloc(3 * n);
	memcpy(p, one, n);
	memcpy(p + n, one, n);
	put_file(scratch("two.gz"), p, 2 * n);
	free(file_read(scratch("two.gz"), &size));
	ok(size == 2 * N, "file_read: two members are one text");
	for (int i = 0; i < PLACES; i++) {
		size_t at = HEADER + (n - HEADER) * i / PLACES;

		p[at] ^= 0x10;
		refuses_gzip("altered in the first member", at, p, 2 * n);
		refuses_gzip("altered in the only member", at, p, n);
		p[at] ^= 0x10;
		p[n + at] ^= 0x10;
		refuses_gzip("altered in the second member", at, p, 2 * n);
		p[n + at] ^= 0x10;
		refuses_gzip("the only member cut", at, p, at);
		refuses_gzip("the second member cut", at, p, n + at);
	}
	for (size_t at = 1; at < HEADER; at++)
		refuses_gzip("the second member cut in its header", at, p, n + at);
	memcpy(p + n, "garbage and more garbage", 24);
	for (size_t at = 1; at <= 24; at += 3)
		refuses_gzip("garbage behind it", at, p, n + at);
	memset(p + n, 0, n);
	refuses_gzip("zeros behind it", n, p, 2 * n);
	memcpy(p + n, one, n);
	p[n] ^= 1;
	refuses_gzip("a second member without its magic", n, p, 2 * n);
	p[n] ^= 1;
	p[n + 2] = 7;
	refuses_gzip("a second member of another method", n, p, 2 * n);
	free(one);
	free(p);
}

/* ---- messages ----------------------------------------------------------------- */

static void text_plain_escapes(void)
{
	static const struct { const char *text, *plain; } cases[] = {
		{ "", "" }, { "plain /text-1", "plain /text-1" }, { "\u00e4 \u20ac \U0001d11e",
		"\u00e4 \u20ac \U0001d11e" }, { "a\nb\r\tc", "a\\nb\\r\\tc" },
		{ "\x1b[31m", "\\x1b[31m" }, { "\x7f", "\\x7f" }, { "\xc2\x9b", "\\xc2\\x9b" },
		{ "\xff\xfe", "\\xff\\xfe" }, { "\xe2\x82", "\\xe2\\x82" },
		{ "\xc0\xaf", "\\xc0\\xaf" }, { "\xe0\x80\xaf", "\\xe0\\x80\\xaf" },
		{ "\xed\xa0\x80", "\\xed\\xa0\\x80" },
		{ "\xf0\x80\x80\x80", "\\xf0\\x80\\x80\\x80" },
		{ "\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80" }, { "%s%n", "%s%n" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char *plain = text_plain(cases[i].text);

		ok(!strcmp(plain, cases[i].plain), "text_plain %zu: %s", i, plain);
		free(plain);
	}
}

static void die_formatted(const void *arg)
{
	die("%s", (const char *)arg);
}

static void die_doomed(const void *arg)
{
	die_removes(arg);
	die("the end");
}

static void die_unfinished(const void *arg)
{
	struct file_writer *f = file_create(arg);

	file_write(f, "half", 4);
	die("the end");
}

static void die_is_one_line(void)
{
	ok(dies(die_formatted, "two\nlines", "two\\nlines"), "die: a line feed");
	ok(dies(die_formatted, "\x1b[2J\xff", "\\x1b[2J\\xff"), "die: control and bad bytes");
	dir_make(scratch("doomed/in"));
	ok(dies(die_doomed, scratch("doomed"), "the end") && access(scratch("doomed"), F_OK),
	   "die removes what is half-written");
	ok(dies(die_unfinished, scratch("unfinished"), "the end") &&
	   access(scratch("unfinished"), F_OK) && access(scratch("unfinished.partial"), F_OK),
	   "die drops unfinished files");
}

static void dir_operations(void)
{
	ok(!dir_make(scratch("a/b/c")) && !dir_make(scratch("a/b/c")) &&
	   !dir_make(scratch("a/b/d/")), "dir_make");
	put_file(scratch("a/file"), "x", 1);
	ok(dir_make(scratch("a/file")) == -ENOTDIR && dir_make(scratch("a/file/x")) == -ENOTDIR &&
	   dir_make("") == -ENOENT, "dir_make: refuses");
	dir_make(scratch("keep"));
	put_file(scratch("keep/file"), "x", 1);
	ok(!link_replace("../keep", scratch("a/link")) && !link_replace("b", scratch("a/best")) &&
	   !link_replace("../keep", scratch("a/best")), "link_replace");
	ok(exists(scratch("a/best/file")) && !exists(scratch("a/best.partial")),
	   "link_replace: points to the new target");
	ok(!dir_sync(scratch("a")) && dir_sync(scratch("none")) == -ENOENT, "dir_sync");
	ok(!path_rename(scratch("a"), scratch("z")) && exists(scratch("z/b/c")) &&
	   path_rename(scratch("a"), scratch("y")) == -ENOENT, "path_rename");
	ok(!dir_remove(scratch("z")) && !exists(scratch("z")), "dir_remove");
	ok(exists(scratch("keep/file")), "dir_remove_follows_no_link");
	link_replace("keep", scratch("l"));
	ok(!dir_remove(scratch("l")) && !exists(scratch("l")) && exists(scratch("keep/file")),
	   "dir_remove: a link itself");
	ok(dir_remove(scratch("none")) == -ENOENT, "dir_remove: missing");
}

static void die_one(const void *arg)
{
	die("%s", (const char *)arg);
}

static void note_status(int status)
{
	char text = '0' + status;

	put_file(scratch("status"), &text, 1);
}

static void die_hooked(const void *arg)
{
	die_hook(note_status);
	die_one(arg);
}

static void util_rest(void)
{
	char *s = xasprintf("%d-%s", 42, "x");
	double t = now();

	ok(!strcmp(s, "42-x"), "xasprintf");
	ok(dies(die_one, "what and where", "tenon: what and where\n"), "die_says_one_line");
	ok(dies(die_hooked, "last words", "last words") && file_holds(scratch("status"), "2", 1),
	   "die_calls_its_hook");
	ok(now() >= t && peak_rss() > 100000, "clock and memory use");
	free(s);
}

int main(void)
{
	scratch_open();
	sha256_known_answers();
	sha256_pieces_match_whole();
	philox_known_answers();
	rng_arguments_are_words();
	rng_moments();
	rng_permute_is_a_bijection();
	rng_permute_depends_on_key();
	hash_name_known_answers();
	file_write_round_trip();
	file_append_goes_on();
	file_write_failure_keeps_the_old();
	file_read_recognises_gzip();
	file_read_refuses_gzip();
	text_plain_escapes();
	die_is_one_line();
	dir_operations();
	util_rest();
	scratch_close();
	return tap_done();
}
