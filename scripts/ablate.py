#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The ablation study behind `make`.

    ablate.py --config FILE --objtree DIR [--out DIR] [--restart] [--threads N]

One binary per arm, built in DIR/arms/stepN from the configuration and the fragment
defconfigs/ra-mla-stepN.config; steps 4 and 5 run the builds of 2 and 3 once more
with another number of threads and must agree with them bit for bit. The largest
arm is built first, and says whether memory, data and output folder are there, before
the others are built. Runs go to
OUT/stepN (further seeds: OUT/stepN-seedS), the table to OUT/table.txt and
table.json. Running again resumes unfinished arms.
"""
import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import study
from dotconfig import DotConfig
from study import StudyError
from study_runs import Run, Scheduler, read, say


class Arm:
    """One binary: the base configuration with the fragment of a step."""

    def __init__(self, step, args):
        self.step = step
        self.tree = os.path.join(args.objtree, "arms", f"step{step}")
        self.config = os.path.join(self.tree, ".config")
        self.binary = os.path.join(self.tree, "tenon")
        self.flops, self.leaks = 1.0, {}

    def configure(self, base):
        """Write the arm's .config."""
        os.makedirs(self.tree, exist_ok=True)
        draft = self.config + ".new"
        with open(base, encoding="utf-8") as src, open(draft, "w", encoding="utf-8") as dst:
            dst.write(src.read())
        run_quiet([sys.executable, "scripts/kconfig.py", "--config", draft, "--gen", self.tree,
                   "merge", study.fragment(self.step)])
        if not os.path.exists(self.config) or read(draft) != read(self.config):
            os.replace(draft, self.config)
        else:
            os.unlink(draft)

    def build(self, cpus):
        run_quiet(["make", "-s", f"-j{cpus}", f"O={self.tree}", "build"])

    def plan(self, flags):
        """The figures of `tenon plan`; dies where a run could not begin."""
        done = subprocess.run([self.binary, "plan", "--check", "--json", *flags], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode:
            raise StudyError(f"step {self.step}: {done.stderr.strip().removeprefix('tenon: ')}",
                             done.returncode)
        plan = json.loads(done.stdout)
        self.flops, self.leaks = plan["flops_token"], plan["leaks"]
        return plan

    def corpus(self):
        """What is embedded as data, or nothing."""
        try:
            with open(os.path.join(self.tree, "data/corpus.bin"), "rb") as f:
                return hashlib.sha256(f.read()).hexdigest()
        except FileNotFoundError:
            return None


def run_quiet(command):
    """Run a command; show its output only where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout)
        raise StudyError(f"`{' '.join(command)}` failed", 2)


def prepare(builds, base, cpus, check):
    """Build all arms, the largest first; its plan, data and folder decide whether to go on."""
    began = time.monotonic()
    largest, rest = builds[-1], builds[:-1]
    for arm in [largest] + rest:
        say(f"building step {arm.step}")
        arm.configure(base)
        arm.build(cpus)
        plan = arm.plan(check if arm is largest else [])
        if arm is largest:
            say(f"step {arm.step}: {plan['params']:,} parameters, "
                f"{plan['train']['arena'] / 2**20:.1f} MiB, fits")
            first = plan
    if len({arm.corpus() for arm in builds}) > 1:
        raise StudyError("the embedded corpus changed while the arms were built (another commit); "
                         "run the same command again")
    say(f"{len(builds)} binaries built in {time.monotonic() - began:.0f} s")
    return first


def concurrency(cpus, runs, plan):
    """(runs at a time, threads of each): one cpu each, as many as memory holds."""
    fit = max(1, plan["memory_available"] // plan["train"]["arena"])
    jobs = max(1, min(cpus, runs, fit))
    return jobs, max(1, cpus // jobs)


def check_twins(runs):
    """Every repeated step against its twin: the same bits."""
    by_key = {(r.step, r.seed): r for r in runs}
    for (step, seed), run in sorted(by_key.items()):
        twin = by_key.get((study.TWIN.get(step), seed))
        if not twin:
            continue
        difference = study.first_difference(run.folder, twin.folder)
        if difference:
            raise StudyError(f"{run.name} is not identical to {twin.name}: {difference}", 1)
        yield (f"{run.name} is identical to {twin.name}: loss and gradient norm of every training "
               f"step, hash of the final weights ({run.threads} against {twin.threads} "
               f"thread{'s' * (twin.threads > 1)})")


def table(runs):
    """[row] in the order of steps."""
    results = {}
    for run in runs:
        results.setdefault(run.step, {})[run.seed] = study.load_result(run.folder)
    leaks = {run.step: " leaks" if run.arm.leaks else "" for run in runs}
    return [study.row(step, study.label(step) + leaks[step], results[step], results.get(0))
            for step in sorted(results)]


def notes(runs):
    """Lines under the table: what leaks; the baseline and the data, the same for all."""
    results = [study.load_result(run.folder) for run in runs]
    for run, result in zip(runs, results):
        if result["data"] != results[0]["data"]:
            raise StudyError(f"{run.name} was trained on other data than {runs[0].name}: "
                             f"{result['data']} against {results[0]['data']}; start the study "
                             "again with RESTART=1")
    lines = [f"data: {results[0]['data']}"]
    if results[0]["bigram_loss"] is not None:
        lines.insert(0, f"bigram byte model, same split: {results[0]['bigram_loss']:.4f}")
    for run in {run.step: run for run in runs}.values():
        lines += [f"step {run.step}: {mixer}: {why}" for mixer, why in run.arm.leaks.items()]
    if len({run.seed for run in runs}) == 1:
        lines.insert(0, "one seed: a change has no spread to be judged by; "
                     "set CONFIG_ABLATION_SEEDS")
    return lines


def report(runs, out):
    """Print and write the table; then the twins."""
    rows, below = table(runs), notes(runs)
    text = study.format_table(rows, below)
    sys.stdout.write("\n" + text)
    twins, failure = [], None
    try:
        for line in check_twins(runs):
            say(line)
            twins.append(line)
    except StudyError as error:
        failure = error
        twins.append(str(error))
    write(os.path.join(out, "table.txt"), text + "".join(t + "\n" for t in twins))
    write(os.path.join(out, "table.json"),
          json.dumps({"rows": rows, "notes": below, "twins": twins}, indent=1) + "\n")
    say(f"table: {out}/table.txt")
    if failure:
        raise failure


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
    try:
        steps = study.parse_steps(cfg.s("RA_MLA_ABLATION_STEPS"))
    except ValueError:
        raise StudyError("CONFIG_RA_MLA_ABLATION_STEPS must be a comma list of steps "
                         f"that have an arm, {study.FRAGMENT.format('N')}") from None
    cpus = args.threads or len(os.sched_getaffinity(0))
    arms = {n: Arm(n, args) for n in sorted({study.build_of(s) for s in steps})}
    out = args.out or os.path.join("runs", cfg.s("RUN_NAME"))
    check = ["--out", out] + (["--data", cfg.s("DATA_PATH")] if cfg.s("DATA_PATH") else [])
    plan = prepare(list(arms.values()), args.config, cpus, check)

    if args.restart:
        move_aside(out)
    os.makedirs(out, exist_ok=True)
    first = cfg.i("SEED")
    seeds = [first + i for i in range(max(1, cfg.i("ABLATION_SEEDS")))]
    jobs, threads = concurrency(cpus, len(steps) * len(seeds), plan)
    runs = [Run(arms[study.build_of(s)], s, seed, out, threads + (s in study.TWIN),
                cfg.i("MAX_ITERS"), first) for seed in seeds for s in steps]
    Scheduler(sorted(runs, key=lambda r: -r.arm.flops), jobs).loop()
    report(runs, out)


def main():
    parser = argparse.ArgumentParser(description="run the ablation study of a configuration")
    parser.add_argument("--config", required=True, help="the .config")
    parser.add_argument("--objtree", required=True, help="arms are built below it")
    parser.add_argument("--out", help="instead of runs/CONFIG_RUN_NAME")
    parser.add_argument("--restart", action="store_true", help="move an old study aside first")
    parser.add_argument("--threads", type=int, help="processors to use, default all")
    args = parser.parse_args()
    try:
        run_study(args)
    except (StudyError, OSError) as error:
        print(f"tenon: {error}", file=sys.stderr)
        return getattr(error, "status", 2)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
