#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A disk that fails: any operation of a run that writes and reads checkpoints, in any way.

The n-th operation (tests/fail_nth.c) fails with ENOSPC, EIO or EINTR, does half of what it was
asked, or is the last one before a SIGKILL. The run then ends as if nothing had been, or with
one line; the next one ends with the same bits as a run that nothing happened to. Files of the
newest checkpoint that are cut short or altered are named and not loaded.

    tests/disk.t            a sample
    tests/disk.t --all      every operation, 200 kills at any time, every byte of the headers,
                            a cut at every 4 KiB, 1,000 flipped bits: hours
"""
import errno
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


def faulty(binary, library, out, at, how):
    """A run whose operation AT fails; the run, and how many operations it came to."""
    counter = f"{library}.count"
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
    rng, out = random.Random(name), f"{tmp}/run"

    def begin():
        shutil.rmtree(out, ignore_errors=True)
        if start:
            copy(start, out)

    begin()
    run, total = faulty(binary, library, out, 0, "")
    t.ok(run.returncode == 0 and total and total > 50 and not t.same_run(whole, out),
         f"{name}: {total} operations", t.said(run))
    for word, how in HOW.items():
        wrong = []
        # The last ones, where all steps are done and the run is not, hide most.
        span = range(1, (total or 0) + 1)
        for at in sorted({*picked(rng, span, PICKS), *picked(rng, span[-LAST:], PICKS and 3)}):
            begin()
            run, _ = faulty(binary, library, out, at, how)
            problem = ended(run, how, out, whole) or goes_on(binary, whole, out)
            if problem:
                wrong.append(f"operation {at}: {problem}")
        t.ok(not wrong, f"{name}: {word} at any operation", "\n".join(wrong[:5]))


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
    """(words, damaged bytes): cuts in the header and at every 4 KiB, flipped bits."""
    for at in picked(rng, range(header_bytes(data, name)), BYTES):
        yield f"cut to {at}", data[:at]
    for at in picked(rng, range(0, len(data), 4096), CUTS):
        yield f"cut to {at}", data[:at]
    for _ in range(FLIPS // len(FILES) + 1):
        at, bit = rng.randrange(len(data)), rng.randrange(8)
        yield f"bit {bit} of byte {at}", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1:]


def test_damage(binary, whole, tmp):
    out = f"{tmp}/damaged"
    for name in FILES:
        good, wrong, tried = t.read(whole, NEWEST, name), [], 0
        for words, data in damages(good, name, random.Random(name)):
            copy(whole, out)
            t.write(data, out, NEWEST, name)
            problem = refused(binary, whole, out, name)
            tried += 1
            if problem:
                wrong.append(f"{words}: {problem}")
        t.ok(tried and not wrong, f"{name}: {tried} damages are named, the checkpoint before it "
             "used", "\n".join(wrong[:5]))


def test_kills(binary, whole, tmp, kills):
    """SIGKILL at moments that nothing chooses, each in a run that goes on from the last."""
    rng, out, hit = random.Random(3), f"{tmp}/killed", 0
    begun = time.monotonic()
    t.train(binary, out, *STEPS)
    span = time.monotonic() - begun
    while hit < kills:
        if os.path.exists(f"{out}/{NEWEST}"):
            shutil.rmtree(out)
        run = subprocess.Popen([binary, "train", "--out", out, "--threads", "1", *map(str, STEPS)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0, span))
        run.kill()
        hit += run.wait() == -signal.SIGKILL
    problem = goes_on(binary, whole, out)
    t.ok(not problem, f"{hit} kills at any time: the same bits", problem)


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
            test_kills(binary, whole, tmp, KILLS)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
