#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Defects planted one at a time: which of them do the tests see?

Drawn by seed from the lines of model/, arch/cpu/ and train/: a sign, an index, a comparison, a
skipped statement, another accumulation. Each is built in a copy of the sources, in double, with
every mechanism on, and the programs that could see it run until one fails. A defect that does
not compile is drawn again. What no program sees is printed: an equivalent change, or a test
that is missing.

    tests/mutants.py [--count N] [--seed S] [--dir DIR] [--list]
"""
import argparse
import os
import random
import re
import shutil
import subprocess
import sys

SRC = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOPS = ("model", "arch/cpu", "train")
CONFIG = ("tiny-ra-mla-full", "real-double")
# By what a defect may be in; the quick ones first.
PROGRAMS = {
    "model": ("test_mixer", "test_model", "test_ra_mla_forms", "test_recip_forms"),
    "arch/cpu": ("test_kernel_norm", "test_kernel_vocab", "test_kernel_gate", "test_kernel_couple",
                 "test_kernel_cache", "test_kernel_optim", "test_kernel_stats", "test_attn",
                 "test_attn_step", "test_route", "test_route_step", "test_kernel_gemm", "test_cpu",
                 "test_kernel_linattn", "test_kernel_linear", "test_kernel_conv",
                 "test_mixer", "test_model"),
    "train": ("test_optim", "test_step", "test_train", "test_model"),
}
# (what, pattern, replacement): applied to one match of one line.
OPERATORS = (
    ("sign", r"(?<=[\w)\]] )\+(?= [\w(])", "-"),
    ("sign", r"(?<=[\w)\]] )-(?= [\w(])", "+"),
    ("sign", r"(?<== )-(?=[\w(])", ""),
    ("factor", r"(?<=[\w)\]] )\*(?= [\w(])", "+"),
    ("index", r"(?<=\w\[)([a-z]\w*)(?=\])", r"\1 + 1"),
    ("bound", r"(?<=[\w)\]] )<(?= [\w(])", "<="),
    ("bound", r"(?<=[\w)\]] )>(?= [\w(])", ">="),
    ("bound", r"(?<=[\w)\]] )<=(?= [\w(])", "<"),
    ("accumulation", r"(?<=[\w\]] )\+=(?= )", "="),
    ("accumulation", r"(?<=[\w\]] )\+=(?= )", "-="),
    ("condition", r"(?<=if \()(?=[a-z!][^;]*\)$)", "!"),
    ("skipped", r"^\t+\w[\w.>\[\]-]*( [-+*/]?= |\()[^{}]*;$", ";"),
)
# Lines that say nothing of numbers, and files; tests of whole runs see to those.
DULL = re.compile(r"^\s*(\*|/|#|static|const|return|struct|case)|die|free\(|printf|assert|log_line|"
                  r"prefetch|tile_scratch|\"")
APART = ("bench.c", "events.c", "folder.c", "log.c", "loop.c", "metrics.c", "result.c", "run.c",
         "stop.c")
LIMIT_S = 300


def sites():
    """(file, line number, what, text) of every defect that could be planted."""
    for top in TOPS:
        for base, _, names in sorted(os.walk(os.path.join(SRC, top))):
            for name in sorted(n for n in names if n.endswith(".c") and n not in APART):
                path = os.path.relpath(os.path.join(base, name), SRC)
                with open(os.path.join(SRC, path), encoding="utf-8") as file:
                    for number, line in enumerate(file.read().splitlines()):
                        yield from ((path, number, what, changed)
                                    for what, changed in planted(line))


def planted(line):
    """(what, changed line) of each defect of a line."""
    if DULL.search(line):
        return
    for what, pattern, to in OPERATORS:
        for match in re.finditer(pattern, line):
            yield what, line[:match.start()] + match.expand(to) + line[match.end():]


def drawn(seed):
    """Defects in an order by seed: no two of one line, folders and kinds in turn."""
    rng, kinds = random.Random(seed), {}
    for site in sites():
        kinds.setdefault((folder(site[0]), site[2]), []).append(site)
    for some in kinds.values():
        rng.shuffle(some)
    lines = set()
    while any(kinds.values()):
        for kind in sorted(kinds):
            while kinds[kind]:
                site = kinds[kind].pop()
                if site[:2] not in lines:
                    lines.add(site[:2])
                    yield site
                    break


def folder(path):
    return next(top for top in TOPS if path.startswith(top + "/"))


def run(tree, *command):
    """Whether a command ends well, in time."""
    try:
        return not subprocess.run(command, cwd=tree, stdout=subprocess.DEVNULL, timeout=LIMIT_S,
                                  stderr=subprocess.DEVNULL).returncode
    except subprocess.TimeoutExpired:
        return False


def build(tree, obj, programs):
    return run(tree, "make", "-s", f"O={obj}", "EXTRA_CFLAGS=-Og -g0 -Wno-error", "check-programs",
               f"PROGRAMS={' '.join(programs)}")


def seen_by(tree, obj, programs):
    """The first program that fails, '' for none, None where the defect does not compile."""
    if not build(tree, obj, programs):
        return None
    return next((p for p in programs if not run(tree, f"{obj}/tests/{p}")), "")


def plant(tree, site):
    """Put a defect into the copy; the text that was there."""
    path = os.path.join(tree, site[0])
    with open(path, encoding="utf-8") as file:
        before = file.read()
    lines = before.split("\n")
    lines[site[1]] = site[3]
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))
    return before


def try_one(tree, obj, site):
    before = plant(tree, site)
    try:
        return seen_by(tree, obj, PROGRAMS[folder(site[0])])
    finally:
        with open(os.path.join(tree, site[0]), "w", encoding="utf-8") as file:
            file.write(before)


def prepare(args):
    """A copy of the sources, configured, in which the programs pass."""
    tree, obj = os.path.join(args.dir, "tree"), os.path.join(args.dir, "obj")
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(SRC, tree, ignore=shutil.ignore_patterns("build", "runs", ".git", ".config"))
    every = sorted({p for some in PROGRAMS.values() for p in some})
    goals = [f"defconfig-{CONFIG[0]}", *(f"{f}.config" for f in CONFIG[1:])]
    if not run(tree, "make", "-s", f"O={obj}", *goals) or not build(tree, obj, every):
        sys.exit("mutants: the sources do not build without a defect")
    broken = [p for p in every if not run(tree, f"{obj}/tests/{p}")]
    if broken:
        sys.exit(f"mutants: {' '.join(broken)} fail without a defect")
    return tree, obj


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", default=os.path.join(SRC, "build/mutants"))
    parser.add_argument("--list", action="store_true", help="name them only")
    args = parser.parse_args()
    args.dir = os.path.abspath(args.dir)
    os.environ.update(OMP_WAIT_POLICY="passive", TENON_OBJECTS="")
    tree, obj = (None, None) if args.list else prepare(args)
    done, missed = 0, 0
    for site in drawn(args.seed):
        if done == args.count:
            break
        seen = "" if args.list else try_one(tree, obj, site)
        if seen is None:
            continue
        done += 1
        missed += not seen
        said = "" if args.list else f"seen by {seen}: " if seen else "NOT SEEN: "
        print(f"{said}{site[0]}:{site[1] + 1}: {site[2]}: {site[3].strip()}", flush=True)
    if not args.list:
        print(f"{done - missed} of {done} seen")
    return 0


if __name__ == "__main__":
    sys.exit(main())
