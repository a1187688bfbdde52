#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Defects planted one at a time: which of them do the tests see?

Drawn by seed from the lines of model/, arch/cpu/ and train/: a sign, an index, a comparison, a
skipped statement, another accumulation. Each is built in a copy of the sources, in every one of
CONFIGS that compiles its file, and the programs that could see it run until one fails, then the
SCRIPTS. A defect that does not compile is drawn again. A change that is proved to be none
(EQUIVALENT) gives its place to the next one drawn of its folder and kind. What nothing sees is
printed: an equivalent change, or a test that is missing.

    tests/mutants.py [--count N] [--seed S] [--dir DIR] [--jobs N] [--list]
"""
import argparse
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from queue import Queue

SRC = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOPS = ("model", "arch/cpu", "train")
# A defconfig and fragments: every mechanism at once, then what only others compile or run.
EVERY = "tests/mutants.config"
CONFIGS = {"every": ("tiny-ra-mla-full", EVERY, "real-double.config"),
           "two-latents": ("tiny-mlakv2m", "real-double.config"),
           "rotated": ("tiny-mlakv2m", "tests/mutants-rotated.config", "real-double.config"),
           "bf16": ("tiny-ra-mla-full", EVERY, "real-bf16.config"),
           "portable": ("tiny-ra-mla-full", EVERY, "portable-bits.config")}
# By what a defect may be in; the quick ones first.
PROGRAMS = {
    "model": ("test_mixer", "test_model", "test_mla", "test_ra_mla_forms", "test_recip_forms"),
    "arch/cpu": ("test_kernel_norm", "test_kernel_vocab", "test_kernel_gate", "test_kernel_couple",
                 "test_kernel_cache", "test_kernel_optim", "test_kernel_stats", "test_kernel_rope",
                 "test_kernel_moe", "test_attn", "test_attn_step", "test_route", "test_route_step",
                 "test_kernel_gemm", "test_cpu", "test_kernel_linattn", "test_kernel_linear",
                 "test_kernel_conv", "test_mixer", "test_model"),
    "train": ("test_optim", "test_step", "test_train", "test_model"),
}
# What no program sees may be seen by tests of whole runs, which take longer.
SCRIPTS = {"model": ("sanitize.t", "plan.t"), "arch/cpu": ("sanitize.t",),
           "train": ("sanitize.t", "checkpoint.t", "drawn.t")}
# Changed lines that compute the same, and why.
WIDTH_0 = "the turn more is of no element"
ONE_RANK = "with one rank nobody reads it: dist/single.c gathers nothing"
EQUIVALENT = {
    ("arch/cpu/device.c", "for (size_t i = 0; i <= bytes; i += COPY_BLOCK)"): WIDTH_0,
    ("arch/cpu/gate.c", "for (int j = 0; j <= c; j += STRIP)"): WIDTH_0,
    ("train/optim.c", "o->own_losses[r] = (size_t)MICROS / ranks * r * sizeof(*o->losses);"): ONE_RANK,
    ("train/optim.c", "o->own_weights[r] = weight_byte(m, o->own[r + 1]);"): ONE_RANK,
    ("train/step.c", "int64_t first = r->st.micro - (int64_t)dist_rank() * step_micros();"): ONE_RANK,
    ("train/optim.c", "for (int r = 0; r < ranks; r++) {"): ONE_RANK,
    ("train/optim.c", "elem - e->offset <= e->numel * sizeof(acc_t) / sizeof(param_t))"): ONE_RANK,
    ("train/optim.c", "dist_gather(o->partial, o->own_partial);"): ONE_RANK,
    ("model/mlp/moe.c", "TENSOR act_t rows[B_MAX + K][C];"):
        "what lies beyond is the beginning of more, written when rows are read for the last time",
}
# What not every processor runs, by a flag of /proc/cpuinfo.
NEEDS = {"arch/cpu/amx.c": "amx_bf16"}
with open("/proc/cpuinfo", encoding="utf-8") as cpu:
    CPU = cpu.read()
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
LIMIT_S = 100


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


def counts(site):
    """Is it a defect, in what this processor runs?"""
    return (site[0], shown(site)) not in EQUIVALENT and NEEDS.get(site[0], "") in CPU


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
                if site[:2] not in lines and counts(site):
                    lines.add(site[:2])
                    yield site
                    break


def folder(path):
    return next(top for top in TOPS if path.startswith(top + "/"))


class Place:
    """A copy of the sources, and object trees beside it. Paths are relative, so that it can
    be copied as it is."""

    def __init__(self, path):
        self.path, self.tree = path, os.path.join(path, "tree")

    def run(self, *command, limit=resource.RLIM_INFINITY):
        """Whether a command ends well; LIMIT is of a processor's time, for others run beside it."""
        return not subprocess.run(
            command, cwd=self.tree, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))).returncode

    def build(self, config, programs):
        return self.run("make", "-s", f"O=../{config}", "EXTRA_CFLAGS=-Og -g0 -Wno-error",
                        "check-programs", f"PROGRAMS={' '.join(programs)}")

    def passes(self, config, program):
        return self.run(f"../{config}/tests/{program}", limit=LIMIT_S)

    def script_passes(self, name):
        return self.run(sys.executable, f"tests/{name}", limit=LIMIT_S)

    def prepare(self, jobs):
        """Sources and every configuration; the programs must pass before there is a defect."""
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(SRC, self.tree, ignore=shutil.ignore_patterns("build", "runs", ".*"))
        every = sorted({p for some in PROGRAMS.values() for p in some})
        for config, (defconfig, *fragments) in CONFIGS.items():
            if not self.run("make", "-s", f"O=../{config}", f"defconfig-{defconfig}",
                            *fragments) or not self.build(config, every):
                sys.exit(f"mutants: {config}: the sources do not build without a defect")
            with ThreadPoolExecutor(jobs) as pool:
                passes = pool.map(self.passes, [config] * len(every), every)
            broken = [p for p, well in zip(every, passes) if not well]
            if broken:
                sys.exit(f"mutants: {config}: {' '.join(broken)} fail without a defect")
        broken = [s for s in sorted({s for some in SCRIPTS.values() for s in some})
                  if not self.script_passes(s)]
        if broken:
            sys.exit(f"mutants: {' '.join(broken)} fail without a defect")

    def configs(self, file):
        """The configurations that compile a file."""
        made = os.path.splitext(file)[0] + ".o"
        return [c for c in CONFIGS if os.path.exists(f"{self.path}/{c}/{made}")]

    def seen_by(self, site):
        """The first program that fails, '' for none, None where the defect does not compile."""
        path, found = os.path.join(self.tree, site[0]), None
        programs = PROGRAMS[folder(site[0])]
        with open(path, encoding="utf-8") as file:
            before = file.read()
        lines = before.split("\n")
        lines[site[1]] = site[3]
        try:
            write(path, "\n".join(lines))
            for config in self.configs(site[0]):
                if self.build(config, programs):
                    found = next((p for p in programs if not self.passes(config, p)), "")
                if found:
                    break
            if found == "":
                found = next((s for s in SCRIPTS.get(folder(site[0]), ())
                              if not self.script_passes(s)), "")
        finally:
            write(path, before)
        return found


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def shown(site):
    """The changed line; of a skipped statement what it was."""
    path, number, what, text = site
    if what == "skipped":
        with open(os.path.join(SRC, path), encoding="utf-8") as file:
            text = file.read().splitlines()[number]
    return text.strip()


def described(site):
    """A site for people."""
    return f"{site[0]}:{site[1] + 1}: {site[2]}: {shown(site)}"


def try_all(sites, count, jobs, path):
    """(site, seen by) of the first COUNT that compile, in their order, JOBS at a time."""
    places = [Place(os.path.join(path, str(i))) for i in range(jobs)]
    places[0].prepare(jobs)
    for place in places[1:]:
        shutil.rmtree(place.path, ignore_errors=True)
        shutil.copytree(places[0].path, place.path)
    free = Queue()
    for place in places:
        free.put(place)

    def one(site):
        place = free.get()
        try:
            return site, place.seen_by(site)
        finally:
            free.put(place)

    with ThreadPoolExecutor(jobs) as pool:
        tried = deque(pool.submit(one, site) for site in islice(sites, count))
        while tried:
            site, seen = tried.popleft().result()
            if seen is None:
                tried.extend(pool.submit(one, other) for other in islice(sites, 1))
            else:
                yield site, seen


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", default=os.path.join(SRC, "build/mutants"))
    parser.add_argument("--jobs", type=int, default=1, help="at a time")
    parser.add_argument("--list", action="store_true", help="name them only")
    args = parser.parse_args()
    os.environ.update(OMP_WAIT_POLICY="passive", TENON_OBJECTS="")
    sites, missed, done = drawn(args.seed), 0, 0
    tried = ((site, None) for site in islice(sites, args.count)) if args.list else \
        try_all(sites, args.count, args.jobs, os.path.abspath(args.dir))
    for site, seen in tried:
        said = "" if args.list else f"seen by {seen}: " if seen else "NOT SEEN: "
        print(said + described(site), flush=True)
        done, missed = done + 1, missed + (seen == "")
    if not args.list:
        print(f"{done - missed} of {done} seen")
    return 0


if __name__ == "__main__":
    sys.exit(main())
