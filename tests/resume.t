#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A run that is killed, anywhere and often, ends as one that is not: the same bits."""
import fcntl
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402

SEEDS = (1, 2)
MAX_KILLS = 8
STEPS = 600

# A run writes 18 bytes a step or more (a line of 70 for five, one of 50 for an evaluation), and
# stops where nobody reads them: with a page in the pipe and a page in Python's buffer it is
# 2 * 4096 / 18 = 455 steps ahead at most. So a signal that follows one of the first FEW lines,
# 80 steps, comes before the last of STEPS, however busy the machine.
PIPE = 4096
FEW = 16
F_SETPIPE_SZ = 1031     # <fcntl.h>; Python has the name since 3.10


def start(binary, out, *args):
    """A run whose lines come through a small pipe."""
    run = subprocess.Popen([binary, "train", "--out", out, *args], stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
    fcntl.fcntl(run.stdout, F_SETPIPE_SZ, PIPE)
    return run


def killed_at_random(binary, out, seed, rng):
    """Kill and go on until the run ends; how often it was killed, its last status."""
    kills = 0
    while True:
        run = start(binary, out, "--seed", str(seed), "--steps", str(STEPS), "--threads",
                    str(rng.choice((1, 1, 2))))
        text, left = "", rng.randint(1, FEW)
        for line in run.stdout:
            text += line
            left -= line.startswith("step ")
            if not left and kills < MAX_KILLS:
                time.sleep(rng.uniform(0, 0.01))    # between lines, too
                run.send_signal(signal.SIGKILL)
                break
        text += run.stdout.read()
        kills += run.wait() == -signal.SIGKILL
        if run.returncode >= 0:
            return kills, run.returncode, text


def test_kill(binary, tmp, seeds=SEEDS):
    rng = random.Random(20)
    for seed in seeds:
        whole, torn = f"{tmp}/whole-{seed}", f"{tmp}/torn-{seed}"
        t.train(binary, whole, "--seed", seed, "--steps", STEPS)
        kills, status, errors = killed_at_random(binary, torn, seed, rng)
        t.ok(status == 0 and kills > 0, f"killed {kills} times: ends well (seed {seed})", errors)
        diff = t.same_run(whole, torn)
        t.ok(not diff, f"killed {kills} times: the same bits (seed {seed})", diff)
        left = [n for n in os.listdir(torn) if n.startswith(".") or n.endswith(".partial")]
        t.ok(not left, f"killed {kills} times: nothing is left over (seed {seed})", left)
    t.ok(len(seeds) == 1 or t.metrics(f"{tmp}/whole-1") != t.metrics(f"{tmp}/whole-2"),
         "seeds differ")


def stop_after(binary, out, sig, line, *args, times=1):
    """Send a signal once a line begins so; status and output."""
    run = start(binary, out, "--threads", "1", *args)
    text = ""
    for got in run.stdout:
        text += got
        if got.startswith(line):
            for _ in range(times):
                run.send_signal(sig)
                time.sleep(0.001 if times > 1 else 0)
            break
    text += run.stdout.read()
    run.wait()
    return run.returncode, text


def test_signals(binary, tmp):
    steps = ("--steps", str(STEPS))
    whole = f"{tmp}/whole"
    t.train(binary, whole, *steps)
    for sig in (signal.SIGTERM, signal.SIGINT):
        out = f"{tmp}/{sig.name}"
        status, text = stop_after(binary, out, sig, "step 15/", *steps)
        t.ok(status == 128 + sig, f"{sig.name}: exit status {128 + sig}", f"{status}\n{text}")
        last = int(t.steps(out)[-1][5:])
        rows = [r["step"] for r in t.metrics(out)]
        t.ok(last >= 15 and rows[-1] == last, f"{sig.name}: the last complete step is kept",
             f"checkpoint {last}, rows to {rows[-1]}")
        t.train(binary, out, *steps)
        diff = t.same_run(whole, out)
        t.ok(not diff, f"{sig.name}: going on gives the same bits", diff)


def test_second_signal(binary, tmp):
    """However many come, and whatever they meet: the status of the first."""
    out = f"{tmp}/twice"
    status, text = stop_after(binary, out, signal.SIGTERM, "step 15/", "--steps", "100000",
                              times=50)
    t.ok(status == 143, "many signals: exit status 143", f"{status}\n{text}")


def test_cut(binary, tmp):
    """Rows and events after the checkpoint, and torn ends, go before a run goes on."""
    whole, out = f"{tmp}/whole", f"{tmp}/cut"
    stop_after(binary, out, signal.SIGTERM, "step 40/", "--steps", str(STEPS))
    last = int(t.steps(out)[-1][5:])
    with open(f"{out}/metrics.jsonl", "a") as f:
        f.write(f'{{"step": {last + 1}, "loss": 1.0}}\n{{"step": {last + 2}, "lo')
    events = next(n for n in os.listdir(out) if "tfevents" in n)
    with open(f"{out}/{events}", "ab") as f:
        f.write(b"\x30\0\0\0\0\0\0\0torn")
    t.train(binary, out, "--steps", STEPS)
    diff = t.same_run(whole, out)
    t.ok(not diff, "a torn metrics.jsonl and event file are cut back", diff)


def main():
    binary = t.build("small")
    with t.folder() as tmp:
        test_kill(binary, tmp)
        test_signals(binary, tmp)
        test_second_signal(binary, tmp)
        test_cut(binary, tmp)
    with t.folder() as tmp:     # where weights have masters
        test_kill(t.build("bf16"), tmp, SEEDS[:1])
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
