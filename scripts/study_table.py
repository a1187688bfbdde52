# SPDX-License-Identifier: MIT
"""The table of a study, from the result.json of its runs.

A run has a name, a folder, a seed, an entry (name, title and label of its arm) and an arm
(leaks; flops a token and decode, tokens/s of its binary, or None).
"""
import math
import os
import re
import statistics
import time

import study
import study_stats
from study import StudyError

DATA_HASH = re.compile(r"sha256 [0-9a-f]+")
HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28}\b")        # a commit; twelve digits are shown
DIGEST = re.compile(r",? sha256 (?:of names and sizes )?[0-9a-f]{64}")

ASK = object()               # no baseline was given: the study's own rule finds one


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


def losses(results):
    """{seed: final loss}"""
    return {seed: result["val_loss"] for seed, result in results.items()}


def row(name, label, results, base, arm):
    """One arm's figures from its results by seed; base: the reference's, or None."""
    change = study_stats.differences(losses(results), losses(base)) if base else []
    loss = mean(list(losses(results).values()))
    one = next(iter(results.values()))
    right = [r.get("val_acc") for r in results.values()]
    return {
        "arm": name,
        "what": label,
        "parameters": one["params"],
        "val_loss": loss,
        "perplexity": None if loss is None else math.exp(loss),
        "val_acc": mean(right),
        "change": statistics.fmean(change) if change else None,
        "differences": change,
        "tokens": one["tokens"],
        "flops_token": arm.flops,
        "cache_token": one["cache_token"],
        "peak_bytes": max(r["peak_bytes"] for r in results.values()),
        "tok_s": statistics.median(r["tok_s"] for r in results.values()),
        "decode_tok_s": arm.decode,
        "text_acc": spread(right, "{:.4f}") if any(x is not None for x in right) else "",
        "text_loss": spread(list(losses(results).values()), "{:.4f}"),
        "text_change": "not finite" if change is None else spread(change, "{:+.4f}") if change
                       else "-",
        "seeds": {str(s): r for s, r in results.items()},
    }


def judge(rows, base, leaking, early):
    """Put what the paired test of each arm says into its row; base: the baseline's name."""
    arms = {r["arm"]: r for r in rows if r["arm"] != base and r["arm"] not in leaking}
    tests = study_stats.judge({name: r["differences"] for name, r in arms.items()
                               if r["differences"]}, early)
    for r in rows:
        test = tests.get(r["arm"])
        r["test"] = test and test.figures()
        r["verdict"] = verdict(r, base, leaking, test)
        if test and test.verdict:
            r["text_change"] = f"{test.mean:+.4f}"
        elif r["arm"] in leaking or r["arm"] == base:
            r["text_change"] = "-"


def verdict(r, base, leaking, test):
    """A word or two; "" where there is nothing to judge by."""
    if r["arm"] in leaking:
        return "leaks"
    if r["val_loss"] is None:
        return "not finite"
    return test_words(r["test"]) if r["arm"] != base and test else ""


def test_words(test):
    """The verdict of Test.figures(); where it is open, how many seeds would settle it."""
    return ": ".join(filter(None, (test["verdict"], seeds_words(test))))


def seeds_words(test):
    if test["verdict"] != "open":
        return ""
    needed = test["needed"]
    return f"about {needed:,} seeds" if needed else f"over {study_stats.MOST_SEEDS:,} seeds"


def table(runs, base=ASK, early=None):
    """[row] in the order of the arms. A repeat is a check, not a result: it has none.

    base: the arm that the others are compared with, or None; study.reference() where not given.
    early: the rule of a study that leaves out what is settled (study_stats.Early)."""
    arms, results = {}, {}
    for run in runs:
        if getattr(run.entry, "twin", None) is None:
            arms[run.entry.name] = run
            results.setdefault(run.entry.name, {})[run.seed] = study.load_result(run.folder)
    base = study.reference(list(results)) if base is ASK else base
    rows = [row(name, run.entry.label + (" leaks" if run.arm.leaks else ""), results[name],
                results.get(base), run.arm)
            for name, run in arms.items()]
    judge(rows, base, {name for name, run in arms.items() if run.arm.leaks}, early)
    return rows


# ---- what is printed

def heads(unit):
    return ("arm", "model", "parameters", "val loss", f"ppl/{unit}", "val acc", "change",
            "95 % interval", "p", "verdict", f"FLOPs/{unit}", f"cache B/{unit}", "peak MiB", "tok/s",
            "decode tok/s")


def cells(r):
    decode, test = r["decode_tok_s"], r.get("test") or {}
    judged = test.get("verdict")
    return (str(r["arm"]), r["what"], f"{r['parameters']:,}", r["text_loss"],
            number(r["perplexity"], "{:.2f}"), r["text_acc"], r["text_change"],
            f"{test['low']:+.4f} to {test['high']:+.4f}" if judged else "",
            p_value(test["holm"]) if judged else "",
            r.get("verdict", ""), "" if r["flops_token"] is None else f"{r['flops_token']:,.0f}",
            f"{r['cache_token']:,}",
            f"{r['peak_bytes'] / 2**20:.1f}", f"{r['tok_s']:,.0f}",
            "" if decode is None else f"{decode:,.0f}")


def p_value(p):
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def table_lines(rows, unit):
    """The table, which is one of markdown, too: a line of each arm begins with its name."""
    lines = [heads(unit)] + [cells(r) for r in rows]
    shown = [i for i in range(len(lines[0])) if any(line[i] for line in lines[1:])]
    width = {i: max(len(line[i]) for line in lines) for i in shown}
    text = [" | ".join(line[i].ljust(width[i]) if i < 2 else line[i].rjust(width[i])
                       for i in shown).rstrip() for line in lines]
    text.insert(1, "|".join("-" * (width[i] + 2) if i < 2 else "-" * (width[i] + 1) + ":"
                            for i in shown)[1:])
    return text


def format_table(rows, below, unit):
    """Text: the table, then the notes."""
    return "\n".join(table_lines(rows, unit) + below) + "\n"


# ---- notes

def content(data):
    """Of what a run says of its data, wherever that stood."""
    found = DATA_HASH.search(data)
    return found[0] if found else data


def same_data(described, advice):
    """Refuse [(name, what it says of its data)] that are not of the same data."""
    first, of_first = described[0]
    for name, data in described:
        if content(data) != content(of_first):
            raise StudyError(f"{name} has other data than {first}: {data or 'none of its own'} "
                             f"against {of_first or 'none of its own'}; {advice}")


def origin(runs, results):
    """Day of the last result, version, tokens."""
    last = max(os.path.getmtime(os.path.join(run.folder, "result.json")) for run in runs)
    versions = sorted({HASH.sub(r"\1", r["build"].partition(";")[0]) for r in results})
    by_run = {run.name: f"{r['tokens']:,}" for run, r in zip(runs, results)}
    by_arm = {run.entry.title: by_run[run.name] for run in runs}
    tokens = set(by_run.values())
    if any(by_arm[run.entry.title] != by_run[run.name] for run in runs):
        by_arm = by_run
    seen = f"{tokens.pop()} tokens seen by each arm" if len(tokens) == 1 else "tokens seen: " + \
        ", ".join(f"{name} {n}" for name, n in by_arm.items())
    return f"{time.strftime('%Y-%m-%d', time.localtime(last))}, Tenon {' and '.join(versions)}; {seen}"


def baseline(rows, results):
    """The bigram loss, and who has not reached it."""
    bigram, unit = results[0]["bigram_loss"], results[0]["unit"]
    if bigram is None:
        return []
    losing = [str(r["arm"]) for r in rows if r["val_loss"] is None or not r["val_loss"] < bigram]
    verdict = f"; not reached by arm {', '.join(losing)}: train longer" if losing else ""
    return [f"bigram baseline, counts of neighbouring {unit}s on the same split: "
            f"{bigram:.4f}{verdict}"]


def meaning(rows, seeds, unit, base=ASK):
    """What loss, change, ± and intervals are of."""
    first = study.reference([r["arm"] for r in rows]) if base is ASK else base
    text = f"val loss in nats per {unit}"
    if first is not None and any(r["change"] is not None for r in rows):
        text += f", change against arm {first}, seed by seed"
    if seeds > 1:
        text += f"; ± is the standard deviation over {seeds} seeds"
    return [text] + tested(rows)


def tested(rows):
    """What interval and p are, and where they need a word."""
    family = [r for r in rows if r.get("test")]
    if not any(r["test"]["n"] > 1 for r in family):
        return []
    if not study_stats.scipy_stats():
        return [study_stats.MISSING]
    family = [r for r in family if r["test"]["verdict"]]
    if not family:
        return []
    corrected = f", corrected for {len(family)} comparisons (Bonferroni and Holm)" \
        if len(family) > 1 else ""
    lines = [f"interval and p: paired t-test{corrected}; seeds that would settle it: with "
             f"{100 * study_stats.POWER:.0f} % chance, as the difference and its spread are now"]
    for r in family:
        test = r["test"]
        if test["holm"] < study_stats.ALPHA and test["low"] < 0 < test["high"]:
            lines.append(f"arm {r['arm']}: that it differs is settled (Holm), how much is not: "
                         "the interval includes 0")
    return lines


def one_seed(runs):
    """What to say where a change has no interval."""
    return ["one seed: a change has no spread to be judged by; set CONFIG_ABLATION_SEEDS"] \
        if len({run.seed for run in runs}) == 1 else []


def notes(runs, rows, advice="start the study again with RESTART=1", base=ASK):
    """Lines under the table."""
    results = [study.load_result(run.folder) for run in runs]
    same_data([(run.name, result["data"]) for run, result in zip(runs, results)], advice)
    lines = [origin(runs, results)]
    lines += meaning(rows, len({run.seed for run in runs}), results[0]["unit"], base)
    lines += baseline(rows, results)
    lines.append("data: " + DIGEST.sub("", results[0]["data"]))
    for run in {run.entry.name: run for run in runs}.values():
        lines += [f"{run.entry.title}: {mixer}: {why}" for mixer, why in run.arm.leaks.items()]
    return lines
