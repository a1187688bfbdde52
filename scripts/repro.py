#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The binary of a run of a study once more, and its first steps: make repro RUN=FOLDER

    repro.py --objtree DIR [--steps N] RUN

Builds the kept configuration from this tree where its sources are those of the run, else from
the commit that the study recorded, and compares loss and gradient norm of the first steps bit
for bit. Status 0 where they are the same, 1 where they differ, 2 where it could not be tried.
"""
import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import study
import study_content
from plain import plain
from study import StudyError
from study_build import run_quiet
from study_runs import say
from study_state import Study

STEPS = 20
POLL = 0.05


def find(folder):
    """(study, arm, run) of a run's folder."""
    out, name = os.path.split(os.path.abspath(folder))
    one = Study.load(out)
    for run in one.record["runs"] if one else []:
        if run["folder"] == name:
            return one, one.arms[run["arm"]], run
    raise StudyError(f"{folder}: no run of a study; name a folder beside a study.json")


def build(source, config, tree):
    """The binary of a configuration, from a source tree."""
    os.makedirs(tree, exist_ok=True)
    target = os.path.join(tree, ".config")
    if not os.path.exists(target) or study.read(target) != study.read(config):
        shutil.copyfile(config, target)
    run_quiet(["make", "-s", "-C", source, f"O={tree}", "build"])


def sources(source, tree):
    """The hash of a build's sources, with paths as its makefile saw them."""
    here = os.getcwd()
    os.chdir(source)
    try:
        return study_content.sources_sha256(tree)
    finally:
        os.chdir(here)


def checkout(one, tree):
    """The tree of the commit that the study was built from."""
    git = one.record["git"]
    if git["dirty"] or git["commit"] == "none":
        raise StudyError("the sources are not those of the run, and it was built from files that "
                         "no commit holds; check out what it was built from")
    os.makedirs(tree, exist_ok=True)
    archive = os.path.join(tree, "source.tar")
    done = subprocess.run(["git", "archive", "-o", archive, git["commit"]],
                          stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise StudyError(f"commit {git['commit'][:12]} is not here: {done.stderr.strip()}; fetch it")
    source = os.path.join(tree, "source")
    shutil.rmtree(source, ignore_errors=True)
    os.makedirs(source)
    run_quiet(["tar", "-C", source, "-xf", archive])
    return source


def exact(one, arm, args):
    """A binary of the run's sources; what else differs is said."""
    config = os.path.join(one.out, arm.record["config"])
    tree = os.path.join(os.path.abspath(args.objtree), arm.record["folder"])
    source = os.getcwd()
    build(source, config, tree)
    if sources(source, tree) != arm.record["sources_sha256"]:
        say(f"the sources here are not those of the run: building from commit "
            f"{one.record['git']['commit'][:12]}")
        source = checkout(one, tree + "-commit")
        tree += "-commit/build"
        build(source, config, tree)
        if sources(source, tree) != arm.record["sources_sha256"]:
            raise StudyError("the sources of that commit are not those of the run either")
    compiler = study_content.compiler(tree)
    if compiler != arm.record["compiler"]:
        say(f"compiler: {compiler}\n  was:    {arm.record['compiler']}")
    return os.path.join(tree, "tenon")


def first_steps(binary, run, steps, data):
    """Train until so many rows are there; [(step, loss, grad_norm)]."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "rb") as nothing:
        out, log = os.path.join(folder, "run"), os.path.join(folder, "log")
        with open(log, "wb") as said:
            process = subprocess.Popen(
                [binary, "train", "--out", out, "--seed", str(run["seed"]),
                 *(["--data", data] if data else [])], stdin=nothing, stdout=said, stderr=said)
        while process.poll() is None and (study.last_row(out) or {"step": 0})["step"] < steps:
            time.sleep(POLL)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait()
        elif process.returncode:
            last = (study.read(log).strip().splitlines() or ["no output"])[-1]
            raise StudyError(f"the run ended with status {process.returncode}: {last}")
        return study.training_rows(out)[:steps]


def repro(args):
    one, arm, run = find(args.run)
    known = study.training_rows(one.path(run))[:args.steps]
    if not known:
        raise StudyError(f"{args.run}: its metrics.jsonl has no step to compare with")
    rows = first_steps(exact(one, arm, args), run, len(known), args.data)
    for old, new in zip(known, rows):
        if old != new:
            raise StudyError(f"step {old[0]}: loss {new[1]!r} and gradient norm {new[2]!r}, the "
                             f"run had {old[1]!r} and {old[2]!r}", 1)
    if len(rows) < len(known):
        raise StudyError(f"{len(rows)} of {len(known)} steps were made", 1)
    say(f"{args.run}: the first {len(known)} steps are the same, bit for bit")


def main():
    parser = argparse.ArgumentParser(description="repeat the first steps of a run of a study")
    parser.add_argument("--objtree", required=True, help="built below it")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"how many, default {STEPS}")
    parser.add_argument("--data", help="instead of CONFIG_DATA_PATH")
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    args = parser.parse_args()
    try:
        repro(args)
    except (StudyError, OSError) as error:
        print(plain(f"tenon: {error}"), file=sys.stderr)
        return getattr(error, "status", 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
