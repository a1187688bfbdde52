#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The report of a study, while it runs or after: make report OUT=DIR

    report.py OUT

Reads OUT/study.json and what the runs wrote; writes OUT/report.html, OUT/summary.md,
OUT/results.csv and OUT/table.json, and prints the summary. Exit status 1 where a repeat
is not identical to the run that it repeats.
"""
import csv
import io
import json
import os
import sys
from types import SimpleNamespace

import report_data
import report_html
import study_table
from plain import plain
from study import StudyError
from study_state import replace


def check_repeats(found):
    """[(line, whether it is a failure)]: one for each arm and twin that agree, one for each
    seed in which they do not."""
    same = {}
    for run, twin, difference in found.repeats():
        if difference:
            yield f"check: {run.name} is not identical to {twin.name}: {difference}", True
        else:
            same.setdefault((run.arm.title, twin.arm.title), []).append((run, twin))
    for (title, other), pairs in same.items():
        run, twin = pairs[0]
        seeds = f" in {len(pairs)} seeds" if len(pairs) > 1 else ""
        yield (f"check: {title} is identical to {other}{seeds}: loss and gradient norm of every "
               f"step, hash of the final weights ({run.info['threads']} against "
               f"{twin.info['threads']} thread{'s' * (twin.info['threads'] > 1)})"), False


def lede(found, rows):
    """What came of it, in a sentence or two."""
    leaking = sum(bool(arm.leaks) for arm in found.compared())
    words = [r["verdict"].split(":")[0] for r in rows]
    counted = [f"{words.count(word)} {said}" for word, said in
               (("better", "better"), ("worse", "worse"), ("same", "the same"), ("open", "open"),
                ("not finite", "not finite")) if word in words]
    if not rows:
        return "No run is finished yet."
    text = f"Against {found.arms[found.baseline].title}: {', '.join(counted)}." if counted else \
        "There is no verdict: it takes two seeds of the baseline and of another arm."
    ranked = [r for r in rows if r["val_loss"] is not None and not found.arms[r["arm"]].leaks]
    if ranked:
        best = min(ranked, key=lambda r: r["val_loss"])
        text += f" The lowest loss is that of {found.arms[best['arm']].title}, {best['val_loss']:.4f}."
    if leaking:
        text += f" {leaking} arm{'s see' if leaking > 1 else ' sees'} the future and " \
            f"{'are' if leaking > 1 else 'is'} not ranked."
    return text


def notes(found, rows):
    """Lines under the table."""
    runs = found.finished()
    lines = study_table.notes(runs, rows, base=found.baseline) + study_table.one_seed(found.runs) \
        if runs else []
    if found.goes_on():
        lines.insert(0, f"{len(runs)} of {len(found.runs)} runs are finished" +
                     ("; the table is of those" if runs else ""))
    if found.early:
        stopped = sum(run.state == "stopped" for run in found.runs)
        lines.append(f"early stop was asked for (p {found.early.p:g}), and {stopped} runs were left out; "
                     "p, interval and verdict count every look at the losses (Haybittle-Peto)")
    return lines


def way_lines(found, ways):
    """The comparison at equal FLOPs and time, a line each; equal tokens are the table."""
    for axis in ("flops", "seconds"):
        way = ways.get(axis)
        if not way or not way["budget"]:
            continue
        arms = [f"{name} {e['test']['mean']:+.4f}" + (f" {study_table.test_words(e['test'])}"
                                                      if e["test"]["verdict"] else "")
                for name, e in way["arms"].items() if e["test"]]
        if arms:
            yield f"change at {report_html.WAYS[axis]}, " \
                f"{report_html.AMOUNT[axis](way['budget'])}: {'; '.join(arms)}"


def results_csv(found, rows):
    """A line for each run, with what is known of its arm."""
    verdicts = {r["arm"]: r["verdict"] for r in rows}
    to = io.StringIO()
    out = csv.writer(to, lineterminator="\n")
    out.writerow(["arm", "what", "leaks", "repeats", "seed", "state", "steps", "tokens", "flops",
                  "seconds_training", "val_loss", "best_loss", "val_acc", "best_acc", "parameters",
                  "flops_token", "cache_token", "peak_bytes", "tok_s", "decode_tok_s", "arm_verdict",
                  "weights_sha256", "folder"])
    for run in found.runs:
        result, arm = run.result or {}, run.arm
        last = run.training[-1] if run.training else {}
        out.writerow([arm.name, arm.label, int(bool(arm.leaks)), arm.twin, run.seed, run.state,
                      run.steps, last.get("tokens"), last.get("flops"), last.get("seconds"),
                      result.get("val_loss"), result.get("best_loss"), result.get("val_acc"),
                      result.get("best_acc"), arm.plan["params"],
                      arm.plan["flops_token"], arm.plan["cache_token"], result.get("peak_bytes"),
                      result.get("tok_s"), arm.decode, verdicts.get(arm.name),
                      result.get("weights_sha256"), run.path])
    return to.getvalue()


def render(out):
    """Write the files; text: what a terminal prints, failure: the first repeat that is not one."""
    found = report_data.load(out)
    rows = study_table.table(found.finished(), found.baseline, found.early)
    ways = report_data.three_ways(found)
    below, checks = notes(found, rows), list(check_repeats(found))
    first, table = lede(found, rows), study_table.table_lines(rows, found.unit) if rows else []
    more = list(way_lines(found, ways)) + [line for line, _ in checks]
    replace(os.path.join(out, "report.html"),
            report_html.page(found, rows, ways, first, below, checks))
    replace(os.path.join(out, "results.csv"), results_csv(found, rows))
    replace(os.path.join(out, "table.json"), json.dumps(
        {"rows": rows, "notes": below, "checks": [line for line, _ in checks]}, indent=1) + "\n")
    replace(os.path.join(out, "summary.md"), "\n".join(
        [f"# {found.record['name']}", "", first, "", *table, "",
         *(f"- {line}" for line in below + more)]) + "\n")
    failures = [line.removeprefix("check: ") for line, bad in checks if bad]
    return SimpleNamespace(text="\n".join([*table, *below, *more]) + "\n",
                           failure=failures[0] if failures else None)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = sys.argv[1]
    try:
        done = render(out)
    except (StudyError, OSError) as error:
        print(plain(f"tenon: {error}"), file=sys.stderr)
        return 2
    except KeyError as error:
        print(plain(f"tenon: {out}: a file of it without {error}; run the study again with this "
                    "version"), file=sys.stderr)
        return 2
    sys.stdout.write(done.text)
    print(f"report: {out}/report.html, {out}/summary.md, {out}/results.csv")
    return 1 if done.failure else 0


if __name__ == "__main__":
    sys.exit(main())
