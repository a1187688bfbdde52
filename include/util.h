/* SPDX-License-Identifier: MIT */
/**
 * DOC: errors, memory, files
 */
#ifndef TENON_UTIL_H
#define TENON_UTIL_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define ARRAY_SIZE(x) (sizeof(x) / sizeof((x)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#define EXIT_INPUT 2	/* bad configuration, data, checkpoint, flag or device */

/**
 * die() - one line "tenon: MESSAGE" on stderr, then exit EXIT_INPUT
 *
 * For what the user can mend: the message says what, where, and what to do.
 */
void die(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));

/**
 * die_bug() - as die(), with file and line, exit 1: what should never happen
 */
#define die_bug(...) die_at(__FILE__, __LINE__, __VA_ARGS__)
void die_at(const char *file, int line, const char *fmt, ...)
	__attribute__((noreturn, format(printf, 3, 4)));

/**
 * die_hook() - what die() and die_bug() call before they leave, once
 * @fn: gets the exit status; NULL: nothing. Ranks take each other down with it.
 */
void die_hook(void (*fn)(int status));

/** warn() - one line on stderr */
void warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/**
 * die_removes() - a folder that is half-written: die() and die_bug() remove it
 * @path: stays valid until the next call; NULL: none any more
 */
void die_removes(const char *path);

/**
 * text_plain() - malloc'ed copy that one line of a terminal can show
 *
 * Names of files may hold anything: control bytes and what is no UTF-8 come out as
 * "\n", "\x1b". What die(), warn() and log_line() print goes through it.
 */
char *text_plain(const char *text);

/**
 * process_init() - what a program does before anything else
 *
 * A file that may not grow says so where it is written (EFBIG) instead of killing the
 * process; jansson dies as xmalloc() does; some memory is set aside, so that die() can
 * still speak and tidy up where there is none.
 */
void process_init(void);

/** stdout_check() - dies where what was printed did not go out: a full disk */
void stdout_check(void);

/** Allocation that dies where there is no memory. */
void *xmalloc(size_t n);
void *xcalloc(size_t n, size_t size);
void *xrealloc(void *p, size_t n);
char *xstrdup(const char *s);
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
char *xvasprintf(const char *fmt, va_list ap);

/** median() - of x[n], n at least 1; sorts x */
double median(double *x, int n);

/** now() - monotonic seconds */
double now(void);

/** peak_rss() - peak resident set of the process in bytes, 0 where /proc is missing */
size_t peak_rss(void);

/**
 * file_open() - a plain file for reading
 *
 * Returns: a descriptor, or -1 with errno set. Folders, pipes, sockets and devices are
 * refused, without waiting for what may never come; file_error() has the words.
 */
int file_open(const char *path);

/**
 * file_peek() - the first bytes of a small text, of /proc for example; asks for no memory
 * @buf: gets at most @size - 1 bytes and a 0 byte
 *
 * Returns: bytes, or -errno.
 */
int file_peek(const char *path, char *buf, size_t size);

/**
 * file_read() - a whole file
 * @path: plain, or gzip (recognised by its content)
 * @size: bytes read
 *
 * Returns: malloc'ed, with a 0 byte behind it; NULL with errno set (EBADMSG: gzip
 * data that is damaged, ends too early, or has other bytes behind it).
 */
uint8_t *file_read(const char *path, size_t *size);

/** file_kind() - of st_mode: 0 for a file, else an errno value that no open() gives */
int file_kind(unsigned int mode);
/** file_error() - strerror(), and what the functions of this file layer mean by theirs */
const char *file_error(int err);

/**
 * DOC: writing
 *
 * Every file that the program writes goes through these, so that a fault can be
 * made in one place. All return 0 or -errno; nothing is half-written under its
 * final name.
 */
struct file_writer;

/**
 * file_create() - start a file; NULL with errno set
 *
 * The bytes go to "@path.partial", which takes the name @path in file_finish(); what
 * had that name before stays until then. A @path that exists and is no plain file
 * (a terminal, a pipe) is written directly.
 */
struct file_writer *file_create(const char *path);
/**
 * file_append() - go on with a file, made where it is missing; NULL with errno set
 *
 * For logs: bytes are in the file when file_write() returns, one write per call, under
 * its own name at once. The checksum covers what this writer appends.
 */
struct file_writer *file_append(const char *path);
/** file_write() - append bytes; feeds the checksum. After an error: that error again */
int file_write(struct file_writer *f, const void *buf, size_t n);
/** fd_sync() - fsync; 0 or -errno, and 0 where there is nothing to sync (a terminal, a pipe) */
int fd_sync(int fd);
/** file_sync() - what was written is on the disk; 0 or -errno */
int file_sync(struct file_writer *f);
/** file_size() - bytes in the file so far, those before file_append() too */
uint64_t file_size(const struct file_writer *f);
/** file_sha256() - hex digest of what was written so far */
void file_sha256(const struct file_writer *f, char hex[65]);
/**
 * file_finish() - fsync, close, rename, free; also after an error
 *
 * Returns: 0, or the first error of this writer; a file being created is removed then.
 */
int file_finish(struct file_writer *f);
/** file_put() - a whole new file, under its name only where it is whole; 0 or -errno */
int file_put(const char *path, const void *buf, size_t n);
/** file_cancel() - close, remove what file_create() started, free */
void file_cancel(struct file_writer *f);
/** files_drop() - remove what file_create() started and nobody finished; die() calls it */
void files_drop(void);

int dir_make(const char *path);			/* mkdir -p */
int dir_make_one(const char *path);		/* in a folder that is there */
int dir_sync(const char *path);			/* fsync a folder */
int dir_remove(const char *path);		/* rm -r, no links followed */
int path_rename(const char *from, const char *to);
int link_replace(const char *target, const char *path);	/* symlink through a rename */
int file_truncate(const char *path, uint64_t size);	/* and fsync */

/** SHA-256 of memory, FIPS 180-4. */
void sha256_hex(const void *buf, size_t n, char hex[65]);
struct sha256 { uint32_t h[8]; uint64_t n; uint8_t block[64]; };
void sha256_init(struct sha256 *s);
void sha256_update(struct sha256 *s, const void *buf, size_t n);
void sha256_final(struct sha256 *s, char hex[65]);

/**
 * DOC: counter-based random numbers
 *
 * Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a
 * pure function of (key, counter). The seed is the key; index (low half) and stream
 * (high half) fill the counter, so that no two (seed, stream, index) share a block.
 */

/** philox() - four random words for @ctr under @key */
void philox(const uint32_t key[2], const uint32_t ctr[4], uint32_t out[4]);

/** rng_u64() - 64 random bits for (@seed, @stream, @index) */
uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index);
/** rng_uniform() - in (0, 1): an odd multiple of 2^-53 */
double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index);
/** rng_normal() - N(0, 1), Box-Muller in double */
double rng_normal(uint64_t seed, uint64_t stream, uint64_t index);
/**
 * rng_permute() - where index @i of a permutation of 0..n-1 goes
 *
 * Feistel network with cycle walking; a bijection for every (@seed, @stream).
 */
uint64_t rng_permute(uint64_t seed, uint64_t stream, uint64_t i, uint64_t n);
/** hash_name() - 64-bit FNV-1a of a string: the stream of a tensor */
uint64_t hash_name(const char *s);

/** CONFIG text of this binary (lib/ikconfig.c), 0-terminated, static. */
const char *config_text(void);
/** "git <hash>[+dirty]; <compiler>; <target>" */
const char *build_text(void);
/** SHA-256 of config_text() */
const char *config_hash(void);

#endif
