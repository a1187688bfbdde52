#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A disk that fails: any operation of a run that writes and reads checkpoints, in any way.

The n-th operation (tests/fail_nth.c) fails with ENOSPC, EIO or EINTR, does half of what it was
asked, or is the last one before a SIGKILL. The run then ends as if nothing had been, or with
one line; the next one ends with the same bits as a run that nothing happened to. Files of the
newest checkpoint that are cut short or altered are named and not loaded.

    tests/disk.t            a sample
    tests/disk.t --all      every operation, 200 kills at any time, every byte of the headers,
                            a cut at every 4 KiB, 1,000 flipped bits: an hour of processors
"""
import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t            # noqa: E402

# Of SMALL: checkpoints after 7 steps and at the end.
STEPS = ("--steps", 8)
NEWEST, BEFORE = "ckpt-000008", "ckpt-000007"
FILES = ("model.safetensors", "optim.safetensors", "state.json", "manifest.json")
HOW = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EINTR": errno.EINTR, "short": "short",
       "kill": "kill"}
LAST = 24
ALL = "--all" in sys.argv[1:]
# The sample: operations and damages that are tried, of each kind and file.
PICKS, BYTES, CUTS, FLIPS, KILLS = (None, None, None, 1000, 200) if ALL else (6, 3, 2, 6, 0)
# At a time; beside the sample other tests run.
JOBS = len(os.sched_getaffinity(0)) if ALL else 1


def shim(tmp):
    """The library that fails operations."""
    path = f"{tmp}/fail_nth.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", path, "tests/fail_nth.c",
                    "-ldl"], cwd=t.SRC, check=True)
    return path


def picked(rng, items, n):
    """All of some items, or n of them."""
    items = list(items)
    return items if n is None or n >= len(items) else rng.sample(items, n)


def copy(src, dst):
    shutil.rmtree(dst, ignore_errors=True)
    shutil.copytree(src, dst, symlinks=True)


def each(tmp, work, *items):
    """What WORK(folder, *item) finds wrong, of every item; JOBS at a time, in folders of their own."""
    fork = multiprocessing.get_context("fork")
    todo, found = list(zip(*items)), fork.SimpleQueue()

    def share(i):
        try:
            found.put([w for item in todo[i::JOBS] if (w := work(f"{tmp}/run{i}", *item))])
        except Exception as error:      # else who waits would wait for ever
            found.put([f"{type(error).__name__}: {error}"])

    jobs = [fork.Process(target=share, args=(i,)) for i in range(JOBS)]
    for job in jobs:
        job.start()
    wrong = [w for _ in jobs for w in found.get()]
    for job in jobs:
        job.join()
    return wrong


def faulty(binary, library, out, at, how):
    """A run whose operation AT fails; the run, and how many operations it came to."""
    counter = f"{out}.count"
    env = dict(os.environ, LD_PRELOAD=library, FAIL_BELOW=out, FAIL_AT=str(at), FAIL_HOW=str(how),
               FAIL_COUNT=counter)
    if os.path.exists(counter):
        os.remove(counter)
    run = t.train(binary, out, *STEPS, env=env)
    return run, int(t.read(counter)) if os.path.exists(counter) else None


def goes_on(binary, whole, out):
    """'' where the next run ends with the same bits and leaves nothing half done."""
    run = t.train(binary, out, *STEPS)
    left = [n for n in os.listdir(out) if n.startswith(".") or n.endswith(".partial")]
    if run.returncode or left:
        return f"the next run: {t.said(run)}{left}"
    return t.same_run(whole, out)


def ended(run, how, out, whole):
    """'' where a run that met a failure ended as it may."""
    if how == "kill":
        return "" if run.returncode in (-signal.SIGKILL, 0) else t.said(run)
    if run.returncode == 0:
        return t.same_run(whole, out)
    fine = how != "short" and t.one_line(run)
    return "" if fine else f"neither well nor with one line: {t.said(run)}"


def test_operations(binary, library, whole, start, tmp, name):
    """Of a run from `start` (None: from nothing) every operation, in every way."""
    rng = random.Random(name)

    def begun(out, at, how):
        """A run that fails so, and how many operations it came to."""
        shutil.rmtree(out, ignore_errors=True)
        if start:
            copy(start, out)
        return faulty(binary, library, out, at, how)

    def wrong(out, at, how):
        run, _ = begun(out, at, how)
        problem = ended(run, how, out, whole) or goes_on(binary, whole, out)
        return problem and f"operation {at}: {problem}"

    out = f"{tmp}/run"
    run, total = begun(out, 0, "")
    t.ok(run.returncode == 0 and total and total > 50 and not t.same_run(whole, out),
         f"{name}: {total} operations", t.said(run))
    for word, how in HOW.items():
        # The last ones, where all steps are done and the run is not, hide most.
        span = range(1, (total or 0) + 1)
        tried = sorted({*picked(rng, span, PICKS), *picked(rng, span[-LAST:], PICKS and 3)})
        found = each(tmp, wrong, tried, [how] * len(tried))
        t.ok(tried and not found, f"{name}: {word} at any operation ({len(tried)})",
             "\n".join(found[:5]))


def refused(binary, whole, out, name):
    """'' where the newest checkpoint is refused by the name of a file, and the run is whole."""
    run = t.train(binary, out, *STEPS)
    if run.returncode or f"{NEWEST}/{name}" not in run.stderr or \
            "resume   from step 7" not in run.stdout:
        return t.said(run)
    return t.same_run(whole, out)


def header_bytes(data, name):
    """Where what describes a file ends: of JSON all of it."""
    return 8 + int.from_bytes(data[:8], "little") if name.endswith(".safetensors") else len(data)


def damages(data, name, rng):
    """(byte, bit): cuts before a byte of the header or at every 4 KiB (no bit), flipped bits."""
    yield from ((at, None) for at in picked(rng, range(header_bytes(data, name)), BYTES))
    yield from ((at, None) for at in picked(rng, range(0, len(data), 4096), CUTS))
    for _ in range(FLIPS // len(FILES) + 1):
        yield rng.randrange(len(data)), rng.randrange(8)


def test_damage(binary, whole, tmp):
    for name in FILES:
        good = t.read(whole, NEWEST, name)

        def wrong(out, damage, name=name, good=good):
            at, bit = damage
            copy(whole, out)
            t.write(good[:at] if bit is None else
                    good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1:], out, NEWEST, name)
            problem = refused(binary, whole, out, name)
            return problem and f"byte {at}, {'cut' if bit is None else f'bit {bit}'}: {problem}"

        tried = list(damages(good, name, random.Random(name)))
        found = each(tmp, wrong, tried)
        t.ok(tried and not found, f"{name}: {len(tried)} damages are named, the checkpoint before "
             "it used", "\n".join(found[:5]))


def test_kills(binary, whole, tmp):
    """SIGKILL at moments that nothing chooses, each in a run that goes on from the last."""
    def wrong(out, seed, kills):
        rng, hit, begun = random.Random(seed), 0, time.monotonic()
        shutil.rmtree(out, ignore_errors=True)
        t.train(binary, out, *STEPS)
        span = time.monotonic() - begun
        while hit < kills:
            if os.path.exists(f"{out}/{NEWEST}"):
                problem = goes_on(binary, whole, out)
                if problem:
                    return problem
                shutil.rmtree(out)
            run = subprocess.Popen([binary, "train", "--out", out, "--threads", "1",
                                    *map(str, STEPS)],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0, span))
            run.kill()
            hit += run.wait() == -signal.SIGKILL
        return goes_on(binary, whole, out)

    share = [len(range(i, KILLS, JOBS)) for i in range(JOBS)]
    found = each(tmp, wrong, range(JOBS), share)
    t.ok(not found, f"{sum(share)} kills at any time: the same bits", "\n".join(found))


def main():
    binary = t.build("small")
    with t.folder() as tmp:
        library, whole, part = shim(tmp), f"{tmp}/whole", f"{tmp}/part"
        t.train(binary, whole, *STEPS)
        copy(whole, part)
        shutil.rmtree(f"{part}/{NEWEST}")
        test_operations(binary, library, whole, None, tmp, "a new run")
        test_operations(binary, library, whole, part, tmp, "a run that goes on")
        test_damage(binary, whole, tmp)
        if KILLS:
            test_kills(binary, whole, tmp)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
