# SPDX-License-Identifier: MIT
"""Training losses as a small picture for a terminal, drawn by gnuplot."""
import shutil
import statistics
import subprocess

import study

POINTS = 60                  # of a curve: each is the mean of the steps around it
SKIP = 10                    # the first 1/SKIP of the steps, where the loss only falls, is left out
HEIGHT = 18                  # lines


def points(folder):
    """[(step, mean loss)] of the training rows; steps without a finite loss are passed over."""
    rows = [(step, loss) for step, loss, _ in study.training_rows(folder) if loss is not None]
    rows = rows[len(rows) // SKIP:]
    size = max(1, len(rows) // POINTS)
    return [(part[len(part) // 2][0], statistics.fmean(loss for _, loss in part))
            for part in (rows[i:i + size] for i in range(0, len(rows), size))]


def script(curves, width):
    """gnuplot's commands for {name: points}."""
    lines = [f"set terminal dumb noenhanced size {width}, {HEIGHT}", "set xlabel 'step'",
             f"set xrange [0:{max(rows[-1][0] for rows in curves.values())}]",
             "set title 'training loss' offset 0, -1", "set key top right"]
    for i, rows in enumerate(curves.values()):
        lines += [f"$curve{i} << END"] + [f"{step} {loss:.6f}" for step, loss in rows] + ["END"]
    plots = [f"$curve{i} with lines title '{name}'" for i, name in enumerate(curves)]
    return "\n".join(lines + ["plot " + ", ".join(plots)]) + "\n"


def draw(folders, width):
    """The picture of {name: folder}; "" where there is no gnuplot, or nothing to draw."""
    curves = {name: points(folder) for name, folder in folders.items()}
    curves = {name: rows for name, rows in curves.items() if len(rows) > 1}
    if not curves or not shutil.which("gnuplot"):
        return ""
    done = subprocess.run(["gnuplot"], input=script(curves, width), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return "" if done.returncode else "\n".join(line.rstrip() for line in
                                              done.stdout.replace("\f", "").split("\n") if line.strip()) + "\n"
