#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The ablation study behind `make`.

    ablate.py --config FILE --objtree DIR [--out DIR] [--restart] [--threads N] [--link FILE]

One binary per arm, built in DIR/arms/NAME from the configuration and a fragment: plain GPT-2,
the published arms of CONFIG_RA_MLA_ABLATION_STEPS, defconfigs/ra-mla-armN.config, then the
fragments of CONFIG_ABLATION_ARMS. Arms 4 and 5 run the builds of 2 and 3 once more with
another number of threads and must agree with them bit for bit. The largest published arm
is built first, and says whether memory, data and output folder are there, before the
others are built. Runs go to OUT/NAME (further seeds: OUT/NAME-seedS), the table to
OUT/table.txt and table.json. Running again resumes unfinished arms.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import time

import curve
import study
import study_table
from dotconfig import DotConfig
from plain import plain
from study import StudyError
from study_runs import Run, Scheduler, columns, read, say

DECODE_STEPS = 100           # that the decode speed is the median of
PICTURE = 100                # columns of a picture of losses, at most


class Arm:
    """One binary: the base configuration with a fragment on top."""

    def __init__(self, entry, args):
        self.title, self.fragment = entry.title, entry.fragment
        self.tree = os.path.join(args.objtree, "arms", entry.build)
        self.config = os.path.join(self.tree, ".config")
        self.binary = os.path.join(self.tree, "tenon")
        self.flops, self.arena, self.leaks = 1.0, 0, {}
        self.iters, self.decode = 0, None

    def configure(self, base):
        """Write the arm's .config."""
        os.makedirs(self.tree, exist_ok=True)
        draft = self.config + ".new"
        with open(base, encoding="utf-8") as src, open(draft, "w", encoding="utf-8") as dst:
            dst.write(src.read())
        run_quiet([sys.executable, "scripts/kconfig.py", "--config", draft, "--gen", self.tree,
                   "merge", self.fragment])
        if not os.path.exists(self.config) or read(draft) != read(self.config):
            os.replace(draft, self.config)
        else:
            os.unlink(draft)
        self.iters = DotConfig.load(self.config).i("MAX_ITERS")

    def build(self, cpus):
        run_quiet(["make", "-s", f"-j{cpus}", f"O={self.tree}", "build"])

    def plan(self, flags):
        """The figures of `tenon plan`; dies where a run could not begin."""
        done = subprocess.run([self.binary, "--called-by-make", "plan", "--check", "--json",
                               *flags], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode:
            raise StudyError(f"{self.title}: {done.stderr.strip().removeprefix('tenon: ')}",
                             done.returncode)
        plan = json.loads(done.stdout)
        self.flops, self.leaks = plan["flops_token"], plan["leaks"]
        self.arena = plan["train"]["arena"]
        return plan


    def measure_decode(self, cpus):
        """Tokens/s of one sequence through the decode caches; a leaking arm has none."""
        if self.leaks or "--decode" not in output([self.binary, "bench", "--help"]):
            return
        times = json.loads(output([self.binary, "bench", "--decode", "--json", "--steps",
                                   str(DECODE_STEPS), "--threads", str(cpus)]))
        self.decode = times["sequences"] / times["step"]


def output(command):
    """What a command prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise StudyError(f"`{' '.join(command)}`: {done.stderr.strip().removeprefix('tenon: ')}",
                         done.returncode)
    return done.stdout


def run_quiet(command):
    """Run a command; show its output only where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout)
        raise StudyError(f"`{' '.join(command)}` failed", 2)


def build_order(entries):
    """One entry for each binary: the largest published arm, which has every mechanism, first."""
    builds = {}
    for entry in entries:
        builds.setdefault(entry.build, entry)
    last = max((e.build for e in entries if e.published), default=None)
    return sorted(builds.values(), key=lambda e: e.build != last)


def prepare(arms, base, cpus, check):
    """Build all arms; plan, data and folder of the first decide whether to go on."""
    began = time.monotonic()
    for arm in arms:
        say(f"building {arm.title}")
        arm.configure(base)
        arm.build(cpus)
        plan = arm.plan(check if arm is arms[0] else [])
        if arm is arms[0]:
            say(f"{arm.title}: {plan['params']:,} parameters, {arm.arena / 2**20:.1f} MiB, fits")
            memory = plan["memory_available"]
    say(f"{len(arms)} binaries built in {time.monotonic() - began:.0f} s")
    return memory


def concurrency(cpus, runs, memory, arms):
    """(runs at a time, threads of each): one cpu each, as many as memory holds."""
    fit = max(1, memory // max(arm.arena for arm in arms))
    jobs = max(1, min(cpus, runs, fit))
    return jobs, max(1, cpus // jobs)


def measure_decodes(runs, out, cpus):
    """Decode speeds, with the machine for each arm alone; those of an old table stay with
    runs that were finished already."""
    try:
        old = {r["arm"]: r["decode_tok_s"] for r in json.loads(read(f"{out}/table.json"))["rows"]}
    except (OSError, ValueError, KeyError):
        old = {}
    for run in runs:
        if run.entry.twin is None and run.arm.decode is None:
            run.arm.decode = None if run.trained else old.get(run.entry.name)
            if run.arm.decode is None:
                run.arm.measure_decode(cpus)


def check_twins(runs):
    """Every repeat against the run that it repeats: the same bits."""
    by_key = {(run.entry.name, run.seed): run for run in runs}
    for run in runs:
        twin = by_key.get((run.entry.twin, run.seed))
        if not twin:
            continue
        difference = study.first_difference(run.folder, twin.folder)
        if difference:
            raise StudyError(f"{run.name} is not identical to {twin.name}: {difference}", 1)
        yield (f"check: {run.name} is identical to {twin.name}: loss and gradient norm of every "
               f"step, hash of the final weights ({run.threads} against {twin.threads} "
               f"thread{'s' * (twin.threads > 1)})")


def report(runs, out):
    """Print and write the table; then the repeats."""
    rows = study_table.table(runs)
    below = study_table.notes(runs, rows) + study_table.one_seed(runs)
    text = study_table.format_table(rows, below, study.load_result(runs[0].folder)["unit"])
    sys.stdout.write("\n" + text)
    checks, failure = [], None
    try:
        for line in check_twins(runs):
            say(line)
            checks.append(line)
    except StudyError as error:
        failure = error
        checks.append(str(error))
    write(os.path.join(out, "table.txt"), text + "".join(c + "\n" for c in checks))
    write(os.path.join(out, "table.json"),
          json.dumps({"rows": rows, "notes": below, "checks": checks}, indent=1) + "\n")
    say(f"table: {out}/table.txt, with hashes and every seed {out}/table.json")
    if failure:
        raise failure


def picture(runs):
    """The training losses of GPT-2, of the reference and of the last arm, on a terminal."""
    if not sys.stdout.isatty():
        return
    firsts = {}
    for run in runs:
        if run.entry.twin is None:
            firsts.setdefault(run.entry.name, run)
    names = [n for n in ("gpt2", study.reference(list(firsts)), list(firsts)[-1]) if n in firsts]
    sys.stdout.write(curve.draw({firsts[n].entry.title: firsts[n].folder for n in names},
                                min(columns(), PICTURE)))


def leave(run, out, link):
    """What goes on from here: the binary of an arm, and the checkpoint that it finds."""
    best = os.path.join(os.path.basename(run.folder), os.readlink(os.path.join(run.folder, "best")))
    replace_link(best, os.path.join(out, "best"))
    binary = run.arm.binary
    if link:
        replace_link(binary, link)
        binary = f"./{link}"
    say(f"{binary} is the binary of {run.entry.title}, {out}/best the checkpoint it is to use:\n"
        f"    {binary} generate --checkpoint {out} --prompt 'static int '\n"
        f"    {binary} plan")


def replace_link(target, path):
    if os.path.lexists(path + ".new"):
        os.unlink(path + ".new")
    os.symlink(target, path + ".new")
    os.replace(path + ".new", path)


def write(path, text):
    """Under a temporary name, then renamed."""
    with open(path + ".new", "w", encoding="utf-8") as f:
        f.write(text)
    os.replace(path + ".new", path)


def move_aside(out):
    """OUT becomes OUT.old-1, -2, ...: the first free one."""
    if not os.path.exists(out):
        return
    n = 1
    while os.path.exists(f"{out}.old-{n}"):
        n += 1
    os.rename(out, f"{out}.old-{n}")
    say(f"the old study is now {out}.old-{n}")


def run_study(args):
    cfg = DotConfig.load(args.config)
    entries = study.entries(cfg)
    if not entries:
        raise StudyError(f"{args.config} is no study: set CONFIG_RA_MLA_ABLATION_MODE=y, or "
                         "fragments as CONFIG_ABLATION_ARMS")
    cpus = args.threads or len(os.sched_getaffinity(0))
    arms = {e.build: Arm(e, args) for e in build_order(entries)}
    out = args.out or os.path.join("runs", cfg.s("RUN_NAME"))
    check = ["--out", out] + (["--data", cfg.s("DATA_PATH")] if cfg.s("DATA_PATH") else [])
    memory = prepare(list(arms.values()), args.config, cpus, check)

    if args.restart:
        move_aside(out)
    os.makedirs(out, exist_ok=True)
    first = cfg.i("SEED")
    seeds = [first + i for i in range(max(1, cfg.i("ABLATION_SEEDS")))]
    jobs, threads = concurrency(cpus, len(entries) * len(seeds), memory, arms.values())
    runs = [Run(arms[e.build], e, seed, out, threads + (e.twin is not None), first)
            for seed in seeds for e in entries]
    Scheduler(sorted(runs, key=lambda r: -r.arm.flops), jobs).loop()
    measure_decodes(runs, out, cpus)
    report(runs, out)
    picture(runs)
    leave(next(r for r in runs if r.arm is next(iter(arms.values()))), out, args.link)


def processors(text):
    """A number of them; said in the words of make, which was typed."""
    if not text.isdecimal() or not 1 <= int(text) <= 4096:
        print(plain(f"tenon: THREADS={text}: give a whole number from 1 to 4096"), file=sys.stderr)
        sys.exit(2)
    return int(text)


def main():
    parser = argparse.ArgumentParser(description="run the ablation study of a configuration")
    parser.add_argument("--config", required=True, help="the .config")
    parser.add_argument("--objtree", required=True, help="arms are built below it")
    parser.add_argument("--out", help="instead of runs/CONFIG_RUN_NAME")
    parser.add_argument("--restart", action="store_true", help="move an old study aside first")
    parser.add_argument("--threads", type=processors, help="processors to use, default all")
    parser.add_argument("--link", help="file that becomes a link to the binary of the largest arm")
    args = parser.parse_args()
    try:
        run_study(args)
    except (StudyError, OSError) as error:
        print(plain(f"tenon: {error}"), file=sys.stderr)
        return getattr(error, "status", 2)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
