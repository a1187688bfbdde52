#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The ablation study behind `make` and `make ablate`.

    ablate.py --config FILE|--base NAME --objtree DIR [--arms WORDS] [--out DIR] ...
    ablate.py --run OUT         run what was built, here or on another machine
    ablate.py --status OUT      how far it is

One binary per arm, built in DIR/arms/NAME from the configuration with fragments and symbols
on top: plain GPT-2, the published arms of CONFIG_RA_MLA_ABLATION_STEPS, then the fragments of
CONFIG_ABLATION_ARMS; or the words of --arms (study_arms.py). Arms 4 and 5 run the builds of 2
and 3 once more with another number of threads and must agree with them bit for bit. The
largest published arm is built first, and says whether memory, data and output folder are
there, before the others are built. Binaries, configurations and OUT/study.json make a folder
that can be moved; runs go to OUT/NAME (further seeds: OUT/NAME-seedS), what came of them to
OUT/report.html, summary.md, results.csv and table.json. Running again resumes what is
unfinished.
"""
import argparse
import itertools
import json
import os
import shlex
import signal
import sys
from collections import namedtuple

import curve
import report as report_files
import study
import study_measure
import study_stats
import study_status
from plain import plain
from study import StudyError
from study_runs import Run, Scheduler, columns, say
from study_state import Study, gpus, machine, memory_checked, output

PICTURE = 100                # columns of a picture of losses, at most

Slot = namedtuple("Slot", "gpu")     # where a run can be: a number for CUDA, or None


# ---- what runs at a time


def visible_gpus():
    """The GPUs that runs may take, by the names that CUDA_VISIBLE_DEVICES has for them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [g for g in chosen.split(",") if g] if chosen else \
        [str(i) for i in range(len(gpus()))]


def slots(one, cpus, runs):
    """(slots, threads of each run): a run a GPU; else one cpu each, as many as memory holds."""
    arms = list(one.arms.values())
    if arms[0].config.y("ARCH_CUDA"):
        found = visible_gpus() or ["0"]
        return [Slot(g) for g in found[:runs]], max(1, cpus // len(found))
    memory = json.loads(output([arms[0].binary, "plan", "--json"], "tenon plan"))["memory_available"]
    fit = max(1, memory // max(arm.plan["train"]["arena"] for arm in arms))
    jobs = max(1, min(cpus, runs, fit))
    return [Slot(None)] * jobs, max(1, cpus // jobs)


def runs_of(one, cpus, data):
    """([Run], slots) of a study, with the threads that each gets."""
    states = one.record["runs"]
    places, threads = slots(one, cpus, len(states))
    first = one.record["seeds"][0]
    for state in states:
        state["threads"] = threads + (one.arms[state["arm"]].twin is not None)
    return [Run(one.arms[s["arm"]], s, one.path(s), s["seed"] == first, data)
            for s in states], places


def settled(one, runs):
    """For --early-stop: why a run need not start any more; see Documentation/study.md."""
    if not one.early:
        return lambda run: None
    if not study_stats.scipy_stats():
        raise StudyError(study_stats.NO_EARLY)
    base = one.record["baseline"]
    family = [a.name for a in one.arms.values()
              if a.twin is None and not a.leaks and a.name != base]
    seeds = one.record["seeds"]

    def losses(name):
        """{seed: loss} of the first seeds, up to one that is not finished."""
        results = {r.seed: study.load_result(r.folder) for r in runs if r.arm.name == name}
        return {seed: results[seed]["val_loss"] for seed in
                itertools.takewhile(results.get, seeds)}

    def reason(run):
        if base is None or run.arm.name not in family:
            return None
        gaps = study_stats.differences(losses(run.arm.name), losses(base))
        word = study_stats.settled(gaps, len(family), one.early) if gaps else ""
        return word and f"settled, {word} than arm {base} after {len(gaps)} seeds"

    return reason


def check_memory(one):
    """Of arms that were built where none of them could run."""
    for arm in one.arms.values():
        if not memory_checked(arm.plan):
            output([arm.binary, "plan", "--check"], arm.title)


# ---- what comes of it


def report(out):
    """Render and print; a repeat that is not its twin fails the study."""
    found = report_files.render(out)
    sys.stdout.write("\n" + found.text)
    say(f"report: {out}/report.html; table: {out}/summary.md, with hashes and every seed "
        f"{out}/table.json and results.csv")
    if found.failure:
        raise StudyError(found.failure, 1)


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


def leave(one, build, link):
    """What goes on from here: the binary of an arm, and the checkpoint that it finds."""
    folder = build.entry.folder
    best = os.path.join(folder, os.readlink(os.path.join(one.out, folder, "best")))
    replace_link(best, os.path.join(one.out, "best"))
    binary = build.binary
    if link:
        replace_link(binary, link)
        binary = f"./{link}"
    say(f"{binary} is the binary of {build.entry.title}, {one.out}/best the checkpoint it is to "
        f"use:\n    {binary} generate --checkpoint {one.out} --prompt 'static int '\n"
        f"    {binary} plan")


def replace_link(target, path):
    if os.path.lexists(path + ".new"):
        os.unlink(path + ".new")
    os.symlink(target, path + ".new")
    os.replace(path + ".new", path)


def run_study(one, args, cpus):
    """Train what is not trained yet, then measure and report."""
    held = one.lock()
    one.refresh()
    one.record["machine"] = machine(one.record["arms"][0]["compiler"])
    check_memory(one)
    runs, places = runs_of(one, cpus, args.data)
    one.save()
    # Seed by seed, so that pairs are whole early; the longest first, so that none is left at the end.
    todo = sorted((run for run in runs if run.state["state"] not in ("done", "stopped")),
                  key=lambda run: (run.seed, -run.arm.flops))
    if len(todo) < len(runs):
        say(f"{len(runs) - len(todo)} of {len(runs)} runs are there")
    Scheduler(todo, places, one.save, settled(one, runs)).loop()
    study_measure.measure(one, runs, cpus)
    report(one.out)
    picture(runs)
    held.close()


def whole(low, high, what):
    """A type of argparse: a whole number, said in the words of make, which was typed."""
    def convert(text):
        if not text.isdecimal() or not low <= int(text) <= high:
            print(plain(f"tenon: {what}={text}: give a whole number from {low} to {high}"),
                  file=sys.stderr)
            sys.exit(2)
        return int(text)
    return convert


def probability(text):
    """EARLY_STOP: the chance that any comparison is wrongly taken for settled."""
    try:
        if 0 < float(text) < study_stats.ALPHA:
            return float(text)
    except ValueError:
        pass
    print(plain(f"tenon: EARLY_STOP={text}: give a chance between 0 and {study_stats.ALPHA}, such as "
                "0.01"), file=sys.stderr)
    sys.exit(2)


def arguments():
    parser = argparse.ArgumentParser(description="run the ablation study of a configuration")
    parser.add_argument("--config", help="the .config")
    parser.add_argument("--base", help="a defconfig, fragments behind it, instead of --config")
    parser.add_argument("--objtree", help="arms are built below it")
    parser.add_argument("--arms", help="instead of those of the configuration")
    parser.add_argument("--seeds", type=whole(1, 10**6, "SEEDS"), help="seeds of every arm")
    parser.add_argument("--out", help="instead of runs/CONFIG_RUN_NAME")
    parser.add_argument("--data", help="instead of CONFIG_DATA_PATH, with --run")
    parser.add_argument("--restart", action="store_true", help="move an old study aside first")
    parser.add_argument("--threads", type=whole(1, 4096, "THREADS"),
                        help="processors to use, default all")
    parser.add_argument("--early-stop", type=probability, help="see Documentation/study.md")
    parser.add_argument("--link", help="file that becomes a link to the binary of the largest arm")
    parser.add_argument("--build-only", action="store_true", help="leave the runs to --run")
    parser.add_argument("--run", metavar="OUT", help="the runs of a study that is built")
    parser.add_argument("--status", metavar="OUT", help="how far a study is")
    return parser.parse_args()


def command(args):
    """What was typed, or stands for it."""
    words = [f"{name}={shlex.quote(str(value))}" for name, value in (
        ("BASE", args.base), ("ARMS", args.arms), ("SEEDS", args.seeds),
        ("EARLY_STOP", args.early_stop)) if value]
    return " ".join(["make ablate", *words]) if words else "make"


def main():
    args = arguments()
    cpus = args.threads or len(os.sched_getaffinity(0))
    try:
        if args.status:
            sys.stdout.write(study_status.text(Study.there(args.status)))
        elif args.run:
            run_study(Study.there(args.run), args, cpus)
        else:
            import study_build    # needs kconfiglib and a compiler, the others do not
            one, largest = study_build.prepare(args, command(args), cpus)
            if args.build_only:
                say(f"{one.out} is built; python3 scripts/ablate.py --run {one.out} runs it, here "
                    "or where that folder and scripts/ are copied to")
            else:
                run_study(one, args, cpus)
                leave(one, largest, args.link)
    except (StudyError, OSError) as error:
        print(plain(f"tenon: {error}"), file=sys.stderr)
        return getattr(error, "status", 2)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
