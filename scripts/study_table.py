# SPDX-License-Identifier: MIT
"""The table of a study, from the result.json of its runs.

A run has a name, a folder, a seed, an entry (name, title and label of its arm) and an arm
(leaks; decode: tokens/s of its binary, or None).
"""
import math
import os
import re
import statistics
import time

import study
from study import StudyError

HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28}\b")        # a commit; twelve digits are shown
DIGEST = re.compile(r",? sha256 (?:of names and sizes )?[0-9a-f]{64}")


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
    """Differences to the reference, seed by seed; [] where there is none."""
    return [None if None in (r["val_loss"], base[s]["val_loss"])
            else r["val_loss"] - base[s]["val_loss"]
            for s, r in results.items()] if base else []


def row(name, label, results, base, decode=None):
    """One arm's figures from its results by seed; base: the reference's, or None."""
    losses = [r["val_loss"] for r in results.values()]
    change = paired(results, base)
    loss = mean(losses)
    one = next(iter(results.values()))
    return {
        "arm": name,
        "what": label,
        "parameters": one["params"],
        "val_loss": loss,
        "perplexity": None if loss is None else math.exp(loss),
        "change": mean(change) if change else None,
        "tokens": one["tokens"],
        "cache_token": one["cache_token"],
        "peak_bytes": max(r["peak_bytes"] for r in results.values()),
        "tok_s": statistics.median(r["tok_s"] for r in results.values()),
        "decode_tok_s": decode,
        "text_loss": spread(losses, "{:.4f}"),
        "text_change": spread(change, "{:+.4f}") if change else "-",
        "seeds": {str(s): r for s, r in results.items()},
    }


def table(runs):
    """[row] in the order of the arms. A repeat is a check, not a result: it has none."""
    arms, results = {}, {}
    for run in runs:
        if getattr(run.entry, "twin", None) is None:
            arms[run.entry.name] = run
            results.setdefault(run.entry.name, {})[run.seed] = study.load_result(run.folder)
    base = results.get(study.reference(list(results)))
    return [row(name, run.entry.label + (" leaks" if run.arm.leaks else ""), results[name], base,
                run.arm.decode)
            for name, run in arms.items()]


# ---- what is printed

def heads(unit):
    return ("arm", "model", "parameters", "val loss", f"ppl/{unit}", "change", f"cache B/{unit}",
            "peak MiB", "tok/s", "decode tok/s")


def cells(r):
    decode = r["decode_tok_s"]
    return (str(r["arm"]), r["what"], f"{r['parameters']:,}", r["text_loss"],
            number(r["perplexity"], "{:.2f}"), r["text_change"], f"{r['cache_token']:,}",
            f"{r['peak_bytes'] / 2**20:.1f}", f"{r['tok_s']:,.0f}",
            "" if decode is None else f"{decode:,.0f}")


def format_table(rows, below, unit):
    """Text: one line per arm that begins with its number or name, then the notes."""
    lines = [heads(unit)] + [cells(r) for r in rows]
    shown = [i for i in range(len(lines[0])) if any(line[i] for line in lines[1:])]
    width = {i: max(len(line[i]) for line in lines) for i in shown}
    text = [" | ".join(line[i].ljust(width[i]) if i < 2 else line[i].rjust(width[i])
                       for i in shown).rstrip() for line in lines]
    text.insert(1, "-+-".join("-" * width[i] for i in shown))
    return "\n".join(text + below) + "\n"


# ---- notes

def same_data(runs, results, advice):
    for run, result in zip(runs, results):
        if result["data"] != results[0]["data"]:
            raise StudyError(f"{run.name} was trained on other data than {runs[0].name}: "
                             f"{result['data']} against {results[0]['data']}; {advice}")


def origin(runs, results):
    """Day of the last result, version, tokens."""
    last = max(os.path.getmtime(os.path.join(run.folder, "result.json")) for run in runs)
    versions = sorted({HASH.sub(r"\1", r["build"].partition(";")[0]) for r in results})
    tokens = {f"{r['tokens']:,}" for r in results}
    seen = f"{tokens.pop()} tokens seen by each arm" if len(tokens) == 1 else "tokens seen: " + \
        ", ".join(f"{run.name} {r['tokens']:,}" for run, r in zip(runs, results))
    return f"{time.strftime('%Y-%m-%d', time.localtime(last))}, Tenon {' and '.join(versions)}; {seen}"


def baseline(rows, results):
    """The bigram loss, and who has not reached it."""
    bigram, unit = results[0]["bigram_loss"], results[0]["unit"]
    if bigram is None:
        return []
    losing = [str(r["arm"]) for r in rows if r["val_loss"] is None or not r["val_loss"] < bigram]
    verdict = f"; arm {', '.join(losing)} loses to it: train longer" if losing else ""
    return [f"bigram baseline, counts of neighbouring {unit}s on the same split: "
            f"{bigram:.4f}{verdict}"]


def meaning(rows, seeds, unit):
    """What loss, change and ± are of."""
    first = study.reference([r["arm"] for r in rows])
    text = f"val loss in nats per {unit}"
    if first is not None and any(r["change"] is not None for r in rows):
        text += f", change against arm {first}, seed by seed"
    if seeds > 1:
        text += f"; ± is the standard deviation over {seeds} seeds"
    return text


def notes(runs, rows, advice="start the study again with RESTART=1"):
    """Lines under the table."""
    results = [study.load_result(run.folder) for run in runs]
    same_data(runs, results, advice)
    lines = [origin(runs, results),
             meaning(rows, len({run.seed for run in runs}), results[0]["unit"])]
    lines += baseline(rows, results)
    lines.append("data: " + DIGEST.sub("", results[0]["data"]))
    for run in {run.entry.name: run for run in runs}.values():
        lines += [f"{run.entry.title}: {mixer}: {why}" for mixer, why in run.arm.leaks.items()]
    return lines
