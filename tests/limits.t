#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Where there is not enough: memory, threads, room in a file. One line, status 2, nothing
half-written, nothing waited for."""
import os
import re
import resource
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t                # noqa: E402
from faults import place, run       # noqa: E402

MIB = 1 << 20
POINTS = 40     # failing allocations that are tried of each command, spread over all of them

# Loaded before the C library: the Nth allocation of the program and of jansson and zlib, or
# the Nth thread, is refused. libgomp and the C library have words of their own for it.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern void *__libc_malloc(size_t n), *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
static uintptr_t from[8], to[8];
static long count, refused = -1, threads;
static int ranges, ready;

static int note(struct dl_phdr_info *o, size_t size, void *ctx)
{
	if (*o->dlpi_name && !strstr(o->dlpi_name, "libjansson") && !strstr(o->dlpi_name, "libz.so"))
		return 0;
	for (int i = 0; i < o->dlpi_phnum && ranges < 8; i++)
		if (o->dlpi_phdr[i].p_type == PT_LOAD && o->dlpi_phdr[i].p_flags & PF_X) {
			from[ranges] = o->dlpi_addr + o->dlpi_phdr[i].p_vaddr;
			to[ranges] = from[ranges] + o->dlpi_phdr[i].p_memsz;
			ranges++;
		}
	return 0;
}

static int refuse(void *caller)
{
	uintptr_t at = (uintptr_t)caller;

	if (!ready) {
		const char *n = getenv("REFUSE_MEMORY");

		ready = 1;
		refused = n ? atol(n) : -1;
		dl_iterate_phdr(note, NULL);
	}
	for (int i = 0; i < ranges; i++)
		if (at >= from[i] && at < to[i] && ++count == refused) {
			errno = ENOMEM;
			return 1;
		}
	return 0;
}

#define CALLER __builtin_return_address(0)
void *malloc(size_t n) { return refuse(CALLER) ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return refuse(CALLER) ? NULL : __libc_calloc(n, size); }
void *realloc(void *p, size_t n) { return refuse(CALLER) ? NULL : __libc_realloc(p, n); }

int pthread_create(pthread_t *id, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
	int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) =
		dlsym(RTLD_NEXT, "pthread_create");
	const char *n = getenv("REFUSE_THREAD");

	return n && ++threads == atol(n) ? EAGAIN : real(id, attr, fn, arg);
}

__attribute__((destructor)) static void tell(void)
{
	char text[32];
	int n = snprintf(text, sizeof(text), "allocations %ld\n", count);

	if (getenv("COUNT_MEMORY") && write(2, text, n) < 0)
		_exit(1);
}
"""


def build_shim(top):
    """Path of the library, or None where there is none of it here."""
    place(f"{top}/shim.c", SHIM.encode())
    done = run(os.environ.get("CC", "gcc"), "-O1", "-w", "-shared", "-fPIC", "-o",
               f"{top}/shim.so", f"{top}/shim.c", "-ldl")
    return None if done.returncode else f"{top}/shim.so"


def shimmed(shim, command, **env):
    # the program does not start itself anew where this is set
    return t.tenon(*command, env={**os.environ, "LD_PRELOAD": shim, "OPENBLAS_NUM_THREADS": "1",
                                  **env}, errors="backslashreplace", timeout=60)


def leftovers(top):
    """What has the name of something half-written."""
    return [os.path.join(base, x) for base, folders, files in os.walk(top)
            for x in folders + files if x.startswith(".") or x.endswith(".partial")]


def ends_well(result, top):
    """Done, or one line and status 2; nothing half-written either way."""
    lines = result.stderr.splitlines()
    return (result.returncode in (0, 2) and len(lines) == (result.returncode == 2) and
            all(x.startswith("tenon: ") for x in lines) and not leftovers(top))


# ---- memory ------------------------------------------------------------------

def in_space(binary, top, kib, threads):
    """A run of two steps in so much address space: what it said, or None where it hangs."""
    limit = (kib << 10, kib << 10)
    try:
        return t.train(binary, f"{top}/as", "--steps", 2, threads=threads, timeout=60,
                       preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit))
    except subprocess.TimeoutExpired:
        return None
    finally:
        shutil.rmtree(f"{top}/as", ignore_errors=True)


def test_address_space(binary, top):
    for threads in (1, 2, 4):
        for size in (*range(50, 160, 10), 200, 250, 300, 350):
            result = in_space(binary, top, size << 10, threads)
            t.ok(result and ends_well(result, top), f"{size} MiB of address space, {threads} "
                 "thread(s): one line or done", t.said(result) if result else "it hangs")


def test_edge(binary, top):
    """Where the least that a run needs lies differs by machine and library: close below it
    everything is there but the last bit."""
    short, enough = 50 << 10, 600 << 10
    while enough - short > 256:
        middle = (short + enough) // 2
        result = in_space(binary, top, middle, 1)
        good = result and ends_well(result, top)
        t.ok(good, f"{middle} KiB of address space: one line or done",
             t.said(result) if result else "it hangs")
        if not good or result.returncode:
            short = middle
        else:
            enough = middle
    for kib in range(enough - 4096, enough, 512):
        result = in_space(binary, top, kib, 1)
        t.ok(result and ends_well(result, top), f"{enough - kib} KiB less than enough: one line",
             t.said(result) if result else "it hangs")


def test_frozen(binary, top):
    """No more memory from some point of a run on: libraries have what they need by then."""
    for threads in (1, 2, 4):
        for line in ("model", "step"):
            job = subprocess.Popen([binary, "train", "--out", f"{top}/frozen", "--threads",
                                    str(threads)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True)
            next(x for x in job.stdout if x.startswith(line))
            size = int(t.read(f"/proc/{job.pid}/statm").split()[0]) * resource.getpagesize()
            resource.prlimit(job.pid, resource.RLIMIT_AS, (size, size))
            out, errors = job.communicate(timeout=120)
            result = subprocess.CompletedProcess(job.args, job.returncode, out, errors)
            t.ok(ends_well(result, top), f"no more memory after the line {line}, {threads} "
                 "thread(s): one line or done", t.said(result))
            shutil.rmtree(f"{top}/frozen", ignore_errors=True)


def commands(binary, top, whole):
    """name -> what reads and writes each kind of file."""
    tokens = place(f"{top}/tokens", bytes(4 * 34))
    prompts = place(f"{top}/prompts", b"one\ntwo\n")
    return {
        "train": [binary, "train", "--steps", 2, "--threads", 1, "--out", f"{top}/made"],
        "resume": [binary, "train", "--steps", 12, "--threads", 1, "--out", f"{top}/half"],
        "eval": [binary, "eval", "--checkpoint", whole, "--threads", 1],
        "generate": [binary, "generate", "--checkpoint", whole, "--prompts", prompts,
                     "--threads", 1],
        "dump": [binary, "dump", "--checkpoint", whole, "--tokens", tokens, "--threads", 1,
                 "--out", f"{top}/made"],
        "plan": [binary, "plan", "--json"], "config": [binary, "config"],
        "bench": [binary, "bench", "--steps", 1, "--warmup", 0, "--json", "--threads", 1],
    }


def reset(top, whole):
    """What a command made goes, what it continues is there."""
    for name in ("made", "half"):
        path = f"{top}/{name}"
        shutil.rmtree(path, ignore_errors=True)
        if os.path.exists(path):
            os.remove(path)
    half = shutil.copytree(whole, f"{top}/half", symlinks=True)
    os.remove(f"{half}/result.json")
    shutil.rmtree(f"{half}/ckpt-000012")


def test_allocations(shim, binary, top, whole):
    for name, command in commands(binary, top, whole).items():
        reset(top, whole)
        counted = shimmed(shim, command, COUNT_MEMORY="1")
        total = int(re.search(r"allocations (\d+)", counted.stderr)[1])
        tried, bad = 0, ""
        for at in range(1, total + 1, max(1, total // POINTS)):
            reset(top, whole)
            result = shimmed(shim, command, REFUSE_MEMORY=str(at))
            tried += 1
            if result.returncode != 2 or not ends_well(result, top):
                bad += f"allocation {at} of {total}: {leftovers(top)} {t.said(result)}\n"
        t.ok(not bad and tried, f"{name}: {tried} of {total} allocations refused, one by one", bad)


# ---- threads -----------------------------------------------------------------

def test_threads(shim, binary, top, whole):
    for at, count in ((1, 2), (1, 8), (3, 8), (7, 8), (9, 16), (15, 16)):
        result = shimmed(shim, [binary, "train", "--out", f"{top}/thread", "--threads", count],
                         REFUSE_THREAD=str(at))
        t.ok(t.one_line(result, f"thread {at + 1} of {count} cannot be started", "--threads"),
             f"thread {at + 1} of {count} cannot be started", t.said(result))
    serves = "CONFIG_BLAS_OPENBLAS=y" in t.tenon(binary, "config").stdout
    for count in (1000, 4096):
        if not serves:
            t.ok(True, f"{count} threads # SKIP this BLAS has no limit of them")
            continue
        for verb in (["train", "--out", f"{top}/thread"], ["bench"],
                     ["eval", "--checkpoint", whole]):
            result = t.tenon(binary, *verb, "--threads", count)
            t.ok(t.one_line(result, f"{count} threads", "at most", "--threads"),
                 f"{verb[0]}: {count} threads", t.said(result))
    for count in (1, 2, 3):
        result = t.tenon(binary, "train", "--out", f"{top}/thread-{count}", "--steps", 1,
                         env={**os.environ, "OMP_NUM_THREADS": str(count)})
        t.ok(result.returncode == 0 and f"{count} thread" in result.stdout,
             f"OMP_NUM_THREADS={count} without --threads", t.said(result))
        result = t.tenon(binary, "train", "--out", f"{top}/thread-{count}-4", "--steps", 1,
                         "--threads", 4, env={**os.environ, "OMP_NUM_THREADS": str(count)})
        t.ok(result.returncode == 0 and "4 threads" in result.stdout,
             f"--threads goes before OMP_NUM_THREADS={count}", t.said(result))


# ---- room in a file ----------------------------------------------------------

def limited(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_file_size(binary, top, whole):
    """The signal that the limit sends (SIGXFSZ) must not kill; nobody ignores it for us."""
    big = os.path.getsize(f"{whole}/ckpt-000012/model.safetensors")
    writers = commands(binary, top, whole)
    for name in ("train", "resume", "dump"):
        for size in (0, 1, 100, 1000, 5000, big // 2, big - 1):
            reset(top, whole)
            before = t.steps(f"{top}/half")
            result = t.tenon(*writers[name], preexec_fn=lambda size=size: limited(size))
            where = writers[name][-1]
            t.ok(t.one_line(result, where, "File too large", "ulimit -f") and
                 not leftovers(top) and before == t.steps(f"{top}/half"),
                 f"{name}: files of at most {size} bytes", t.said(result))
    for verb in (["config"], ["plan"], ["plan", "--json"], ["--help"], ["train", "--help"]):
        with open(f"{top}/stdout", "w", encoding="utf-8") as out:
            result = run(binary, *verb, stdout=out, preexec_fn=lambda: limited(10))
        t.ok(t.one_line(result, "stdout", "File too large"), f"{' '.join(verb)}: stdout of at most "
             "10 bytes", f"{result.returncode} {result.stderr}")


def main():
    binary = t.build("small")
    with t.folder() as base:
        top, whole = place(f"{base}/top", {}), f"{base}/whole"
        t.train(binary, whole, "--steps", 12)
        shim = build_shim(base)
        test_address_space(binary, top)
        test_edge(binary, top)
        test_frozen(binary, top)
        test_file_size(binary, top, whole)
        if shim:
            test_allocations(shim, binary, top, whole)
            test_threads(shim, binary, top, whole)
        else:
            t.ok(True, "allocations and threads # SKIP no library can be put before libc here")
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
