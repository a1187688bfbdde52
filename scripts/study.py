# SPDX-License-Identifier: MIT
"""What the ablation study compares, and its table.

A run is a folder written by `tenon train`: metrics.jsonl has one row per training
step, result.json the outcome.
"""
import json
import math
import os
import statistics


class StudyError(Exception):
    """One line for the user, with the exit status."""

    def __init__(self, message, status=2):
        super().__init__(message)
        self.status = status


FRAGMENT = "defconfigs/ra-mla-step{}.config"    # what an arm puts on the configuration
TWIN = {4: 2, 5: 3}          # a step that repeats another one's build and seed
TAIL = 1 << 14               # bytes at the end of metrics.jsonl that hold its last rows


def parse_steps(text):
    """[step] from "0,1,5"; ValueError where it is no such list."""
    steps = [int(word) for word in text.split(",")]
    if len(set(steps)) != len(steps) or not all(os.path.exists(fragment(s)) for s in steps):
        raise ValueError(text)
    return sorted(steps)


def build_of(step):
    return TWIN.get(step, step)


def fragment(step):
    """The file of a step's arm."""
    return FRAGMENT.format(build_of(step))


def label(step):
    """What the fragment's first line, "# Arm N: words", says of it."""
    with open(fragment(step), encoding="utf-8") as f:
        words = f.readline().strip("# \n").partition(": ")[2]
    return words + (f" (= {TWIN[step]})" if step in TWIN else "")


def load_result(folder):
    """result.json of a run, or None."""
    try:
        with open(os.path.join(folder, "result.json"), encoding="utf-8") as f:
            return json.load(f)
    except (OSError, ValueError):
        return None


def training_rows(folder):
    """[(step, loss, grad_norm)] of metrics.jsonl, without a torn last line."""
    rows = []
    try:
        with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as f:
            for line in f:
                if not line.endswith("\n"):
                    break
                row = json.loads(line)
                if "grad_norm" in row:
                    rows.append((row["step"], row["loss"], row["grad_norm"]))
    except FileNotFoundError:
        pass
    return rows


def last_row(folder):
    """The last whole training row of metrics.jsonl, or None."""
    try:
        with open(os.path.join(folder, "metrics.jsonl"), "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - TAIL))
            lines = f.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            return None
        if "grad_norm" in row:
            return row
    return None


def first_difference(folder, twin):
    """None where two runs agree bit for bit, else what differs first."""
    a, b = training_rows(folder), training_rows(twin)
    for (step, *mine), (other, *theirs) in zip(a, b):
        if step != other:
            return f"row of step {step} against step {other}"
        for name, x, y in zip(("loss", "grad_norm"), mine, theirs):
            if x != y and not (x != x and y != y):
                return f"training step {step}: {name} {x!r} against {y!r}"
    if len(a) != len(b) or not a:
        return f"{len(a)} training steps against {len(b)}"
    mine, theirs = (load_result(f).get("weights_sha256") for f in (folder, twin))
    return None if mine and mine == theirs else f"final weights {mine} against {theirs}"


def number(x, form="{:.4f}"):
    return "not finite" if x is None or not math.isfinite(x) else form.format(x)


def mean(values):
    """None where a value is missing."""
    return None if None in values else statistics.fmean(values)


def spread(values, form):
    """"mean" of one seed, "mean ± sd" of several."""
    text = number(mean(values), form)
    if len(values) > 1 and None not in values:
        text += f" ± {statistics.stdev(values):.4f}"
    return text


def paired(results, base):
    """Differences to step 0, seed by seed; [] where it was not run."""
    return [None if None in (r["val_loss"], base[s]["val_loss"])
            else r["val_loss"] - base[s]["val_loss"]
            for s, r in results.items()] if base else []


def row(step, name, results, base):
    """One step's cells from its results by seed; base: step 0's, or None."""
    losses = [r["val_loss"] for r in results.values()]
    change = paired(results, base)
    loss = mean(losses)
    return {
        "step": step,
        "arm": name,
        "parameters": next(iter(results.values()))["params"],
        "val_loss": loss,
        "perplexity": None if loss is None else math.exp(loss),
        "change": mean(change) if change else None,
        "peak_bytes": max(r["peak_bytes"] for r in results.values()),
        "tok_s": statistics.median(r["tok_s"] for r in results.values()),
        "text_loss": spread(losses, "{:.4f}"),
        "text_change": spread(change, "{:+.4f}") if change else "-",
        "seeds": {str(s): r for s, r in results.items()},
    }


HEADS = ("step", "arm", "parameters", "val loss", "perplexity", "change", "peak memory",
         "tok/s")


def cells(r):
    return (str(r["step"]), r["arm"], f"{r['parameters']:,}", r["text_loss"],
            number(r["perplexity"], "{:.2f}"), r["text_change"],
            f"{r['peak_bytes'] / 2**20:.1f} MiB", f"{r['tok_s']:,.0f}")


def format_table(rows, notes):
    """Text: one line per step that begins with its number, then the notes."""
    lines = [HEADS] + [cells(r) for r in rows]
    width = [max(len(line[i]) for line in lines) for i in range(len(HEADS))]
    text = [" | ".join(c.ljust(w) if i < 2 else c.rjust(w)
                       for i, (c, w) in enumerate(zip(line, width))).rstrip()
            for line in lines]
    text.insert(1, "-+-".join("-" * w for w in width))
    return "\n".join(text + notes) + "\n"
