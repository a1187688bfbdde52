#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Accuracies of a study on drawn data that asks for answers.

    report_recall.py [--baseline ARM] [--svg FILE [--arms ARM,ARM...]] OUT...

A line for each arm of the studies OUT: accuracy of the best evaluation on val and of its
checkpoint on test, mean and deviation over the seeds; steps to the first evaluation of ENOUGH;
a forward's time; and test accuracy against the baseline's, seed by seed, with the interval that
holds together with the others. Arms that are the same model at several learning rates are one
family: the rate with the best mean on val is marked. SVG: val accuracy against steps (gnuplot).
"""
import argparse
import re
import statistics
import subprocess
import sys

import report_data
import study
import study_stats

ENOUGH = 0.90                # of the answers right
RATE = re.compile(r"\+?LEARNING_RATE=[^+]*")
GNUPLOT = """set terminal svg size 760,430 background "#ffffff" font "sans-serif,12"
set xlabel "training step"
set ylabel "right answers on val"
set yrange [0:1]
set key outside bottom center horizontal
set style fill transparent solid 0.2 noborder
"""


class Arm:
    """What the finished runs of one arm came to, by seed."""

    def __init__(self, arm):
        self.name, self.record, self.plan = arm.name, arm.record, arm.plan
        self.runs = [run for run in arm.runs if run.result]
        self.best = {run.seed: run.result["best_acc"] for run in self.runs}
        self.test = {run.seed: run.info["test"]["acc"] for run in self.runs if run.info.get("test")}
        self.rows = {run.seed: accuracies(run.folder) for run in self.runs}

    def reached(self):
        """Steps of each seed to the first evaluation of ENOUGH, or "never"."""
        firsts = (next((step for step, acc in rows if acc >= ENOUGH), None)
                  for rows in self.rows.values())
        return ", ".join("never" if step is None else f"{step:,}" for step in firsts)

    def curve(self):
        """[(step, mean, least, most)]: a run that stopped early keeps its last accuracy."""
        steps = sorted({step for rows in self.rows.values() for step, _ in rows})
        found = []
        for step in steps:
            values = [[acc for at, acc in rows if at <= step][-1:] for rows in self.rows.values()]
            values = [v[0] for v in values if v]
            found.append((step, statistics.fmean(values), min(values), max(values)))
        return found


def accuracies(folder):
    return [(row["step"], row["acc"]) for row in study.metric_rows(folder)
            if row.get("split") == "val"]


def named(arms, name):
    for arm in arms:
        if arm.name == name:
            return arm
    raise study.StudyError(f"no arm {name}; there are {', '.join(arm.name for arm in arms)}")


def spread(values):
    values = list(values)
    if not values:
        return ""
    text = f"{statistics.fmean(values):.4f}"
    return text + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def judged(arms, base):
    """{arm: Test} of test accuracies minus the baseline's; what is higher is better."""
    pairs = {arm.name: [base.test[s] - arm.test[s] for s in arm.test if s in base.test]
             for arm in arms if arm is not base}
    return study_stats.judge({name: gaps for name, gaps in pairs.items() if gaps})


def difference(test):
    if not test:
        return "", ""
    if not test.verdict:
        return f"{-test.mean:+.4f}", ""
    return f"{-test.mean:+.4f} ({-test.high:+.4f} to {-test.low:+.4f})", test.verdict


def chosen(arms):
    """Names of the arms whose rate is the best of their model."""
    best = {}
    for arm in arms:
        model = RATE.sub("", arm.name)
        if model not in best or statistics.fmean(arm.best.values()) > \
                statistics.fmean(best[model].best.values()):
            best[model] = arm
    return {arm.name for arm in best.values()}


def table(arms, base):
    marked, tests = chosen(arms), judged(arms, base)
    yield "| arm | parameters | seeds | val | test | against the first | verdict | steps to " \
        f"{ENOUGH:.2f} | forward ms |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for arm in arms:
        forward = arm.record.get("forward_ms")
        yield "| " + " | ".join((
            arm.name + (" *" if arm.name in marked else ""), f"{arm.plan['params']:,}",
            str(len(arm.runs)), spread(arm.best.values()), spread(arm.test.values()),
            *difference(tests.get(arm.name)), arm.reached(),
            f"{forward:.2f}" if forward else "")) + " |"


def draw(arms, path):
    """One line for each arm, with a band from the lowest to the highest seed."""
    lines, data = [], []
    for i, arm in enumerate(arms):
        data.append(f"$a{i} << END\n" + "".join("%d %.6f %.6f %.6f\n" % row for row in arm.curve()) + "END\n")
        title = arm.name.replace("_", " ")
        lines += [f'$a{i} using 1:3:4 with filledcurves lc {i + 1} notitle',
                  f'$a{i} using 1:2 with lines lw 2 lc {i + 1} title "{title}"']
    subprocess.run(["gnuplot"], check=True, text=True, input=GNUPLOT + "".join(data) +
                   f'set output "{path}"\nplot ' + ", ".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--baseline", help="an arm, else the first")
    parser.add_argument("--svg", help="file of the curves")
    parser.add_argument("--arms", help="of the curves, else those with the best rates")
    parser.add_argument("out", nargs="+", metavar="OUT", help="folder of a study")
    args = parser.parse_args()
    try:
        arms = [Arm(arm) for out in args.out for arm in report_data.load(out).compared()]
        arms = [arm for arm in arms if arm.runs]
        if not arms:
            raise study.StudyError("no run is finished yet")
        base = named(arms, args.baseline) if args.baseline else arms[0]
        print("\n".join(table(arms, base)))
        if args.svg:
            draw([named(arms, name) for name in args.arms.split(",")] if args.arms else
                 [arm for arm in arms if arm.name in chosen(arms)], args.svg)
    except (study.StudyError, OSError) as error:
        print(f"tenon: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
