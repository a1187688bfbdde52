# SPDX-License-Identifier: MIT
"""How far a study is: a line for each arm, and the runs that go on."""
import study
from study_runs import duration

SIGNS = {"done": "#", "running": ">", "failed": "!", "stopped": "-", "waiting": "."}


def arm_line(arm, runs, width):
    losses = [r["val_loss"] for run in runs if (r := study.load_result(run["path"]))]
    known = [x for x in losses if x is not None]
    loss = f"  validation loss {sum(known) / len(known):.4f} of {len(known)}" if known else ""
    return f"{arm.title:{width}}  {''.join(SIGNS[r['state']] for r in runs)}{loss}"


def active_line(arm, run):
    row = study.last_row(run["path"])
    where = f"step {row['step']} of {arm.iters}" if row else "starts"
    return f"{arm.title} seed {run['seed']}: {where}"


def text(one):
    """Of a study that runs, or of one that has ended or was stopped."""
    going = one.running()
    if not going:
        one.refresh()
    runs = [{**r, "path": one.path(r)} for r in one.record["runs"]]
    width = max(len(arm.title) for arm in one.arms.values())
    done = sum(r["state"] == "done" for r in runs)
    lines = [f"{one.out}: {one.record['command']}", f"{done} of {len(runs)} runs are done" + (
        "" if going else "; nothing runs" + ("" if done == len(runs) else
                                             ", the same command resumes"))]
    lines += [arm_line(arm, [r for r in runs if r["arm"] == name], width)
              for name, arm in one.arms.items()]
    lines += [active_line(one.arms[r["arm"]], r) for r in runs if r["state"] == "running"]
    lines += [f"{one.arms[r['arm']].title} seed {r['seed']}: {r['note']}" for r in runs if r["note"]]
    left = time_left(one, runs) if going else None
    if left:
        lines.append(f"{duration(left)} left")
    return "\n".join(lines + ["# done, > running, . waiting, ! failed, - not run"]) + "\n"


def time_left(one, runs):
    """Seconds, as runs that are done took them; None before there is one."""
    def operations(run):
        row = study.last_row(run["path"])
        arm = one.arms[run["arm"]]
        return arm.flops * (arm.iters - (row["step"] if row else 0))

    seconds = [r["seconds"] / r["steps"] / one.arms[r["arm"]].flops for r in runs
               if r["state"] == "done" and r["seconds"] and r["steps"]]
    active = sum(r["state"] == "running" for r in runs)
    if not seconds or not active:
        return None
    work = sum(operations(r) for r in runs if r["state"] in ("running", "waiting"))
    return sum(seconds) / len(seconds) * work / active
