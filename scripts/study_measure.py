# SPDX-License-Identifier: MIT
"""What is measured of a study's arms and runs when all are trained. It stays while nothing is
trained again."""
import json
import re
import statistics

import study
from study_state import output

DECODE_STEPS = 100           # that the decode speed is the median of
FORWARDS = ["--forward", "--warmup", "10", "--steps", "50"]    # that a forward's time is of
ROUNDS = 5                   # turns of each arm, of which the median counts
ACCURACY = re.compile(r" loss (\S+) .* acc (\S+)")             # of `tenon eval`


def decodes(one, runs, cpus):
    """Tokens/s of one sequence through the decode caches, with the machine for each arm alone; a
    leaking arm has none."""
    again = {run.arm.name for run in runs if run.trained}
    for arm in one.arms.values():
        if arm.twin is not None or arm.leaks or (arm.decode and arm.name not in again) or \
                "--decode" not in output([arm.binary, "bench", "--help"], arm.title):
            continue
        times = json.loads(output([arm.binary, "bench", "--decode", "--json", "--steps",
                                   str(DECODE_STEPS), "--threads", str(cpus)], arm.title))
        arm.decode = times["sequences"] / times["step"]
        one.save()


def tests(one, runs, cpus):
    """Loss and accuracy of the best checkpoint on the test split, which only drawn data has."""
    for run in runs:
        result = study.load_result(run.folder)
        if not result or result.get("best_acc") is None or (run.state.get("test") and not run.trained):
            continue
        said = output([run.arm.binary, "eval", "--checkpoint", run.folder, "--split", "test",
                       "--threads", str(cpus)], run.name)
        run.state["test"] = dict(zip(("loss", "acc"), map(float, ACCURACY.search(said).groups())))
        one.save()


def forwards(one, runs, cpus):
    """Milliseconds of a forward of BATCH_SIZE sequences, arms in turns, where data asks for
    answers."""
    again = {run.arm.name for run in runs if run.trained}
    arms = [arm for arm in one.arms.values() if arm.config.y("DATA_MQAR") and arm.twin is None]
    if all(arm.record.get("forward_ms") and arm.name not in again for arm in arms):
        return
    times = {arm.name: [] for arm in arms}
    for _ in range(ROUNDS):
        for arm in arms:
            times[arm.name].append(json.loads(output(
                [arm.binary, "bench", *FORWARDS, "--json", "--threads", str(cpus)],
                arm.title))["step"])
    for arm in arms:
        arm.record["forward_ms"] = 1e3 * statistics.median(times[arm.name])
    one.save()


def measure(one, runs, cpus):
    for what in (decodes, tests, forwards):
        what(one, runs, cpus)
