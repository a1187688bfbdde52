#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The table of the study for finished runs of any binaries: make table RUNS="DIR DIR..."

    table.py [--out FILE] RUN...

A RUN is a folder of `tenon train`; the first one is what the others are compared with.
Runs that were trained on different data are refused; what else differs is said below.
"""
import argparse
import os
import sys
from types import SimpleNamespace

import study
import study_table
from study import StudyError
from study_state import replace

# Fields of result.json that runs to be compared should share, and in which words.
SAME = {"seed": "seed", "steps": "steps", "build": "build"}


def short(folders):
    """Names for the folders: their last parts, as many as tell them apart."""
    parts = [os.path.abspath(folder).split(os.sep) for folder in folders]
    for n in range(1, max(map(len, parts))):
        names = [os.sep.join(p[-n:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise StudyError("a run is named twice")


def load(name, folder):
    """A finished run in the form in which the study's table takes it."""
    result = study.load_result(folder)
    if not result:
        raise StudyError(f"{folder}/result.json: no finished run; name folders of `tenon train`")
    entry = SimpleNamespace(name=name, title=name, label=result["label"] or result["run"])
    return SimpleNamespace(name=name, folder=folder, seed=0, entry=entry, result=result,
                           arm=SimpleNamespace(leaks=result["leaks"], flops=None, decode=None))


def differences(runs):
    """A line for each figure that should be the same and is not."""
    for field, words in SAME.items():
        values = [str(run.result[field]) for run in runs]
        if len(set(values)) > 1:
            yield f"{words} differ: " + ", ".join(f"{r.name} {v}" for r, v in zip(runs, values))


def main():
    parser = argparse.ArgumentParser(description="one table of finished runs")
    parser.add_argument("--out", help="write it to a file, too")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    args = parser.parse_args()
    try:
        runs = [load(*pair) for pair in zip(short(args.runs), args.runs)]
        rows = study_table.table(runs)
        below = study_table.notes(runs, rows, "compare runs on the same data")
        below += differences(runs)
        text = study_table.format_table(rows, below, runs[0].result["unit"])
        sys.stdout.write(text)
        if args.out:
            replace(args.out, text)
    except (StudyError, OSError, KeyError) as error:
        missing = f"a result.json without {error}; train with this version" \
            if isinstance(error, KeyError) else error
        print(f"tenon: {missing}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
