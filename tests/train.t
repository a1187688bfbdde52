#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The verb train: what it prints and logs, repeats bit for bit, and refuses."""
import fcntl
import json
import math
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402

STEP_FIELDS = ["step", "tokens", "loss", "lr", "grad_norm", "tok_s", "ms", "mfu", "peak_bytes",
               "skipped"]
EVAL_FIELDS = ["step", "split", "loss", "ppl"]


def test_output(binary, out):
    run = t.train(binary, out)
    t.ok(run.returncode == 0 and not run.stderr, "a run ends with status 0", t.said(run))
    for word in ("run ", "build ", "device ", "data ", "model ", "memory ", "steps ", "time "):
        t.ok(re.search(f"^{word} *\\S", run.stdout, re.M), f"says: {word}", run.stdout)
    t.ok(re.search(r"^data .*sha256 [0-9a-f]{64}", run.stdout, re.M), "data has its SHA-256")
    shown = re.findall(r"^step (\d+)/60  loss [\d.]+  lr [\d.e-]+  norm [\d.]+  \d+ tok/s  eta ",
                       run.stdout, re.M)
    t.ok(shown == ["1"] + [str(i) for i in range(5, 61, 5)],
         "in a pipe: a line every LOG_INTERVAL steps", run.stdout)
    t.ok("\r" not in run.stdout and "\033" not in run.stdout, "in a pipe: no control characters")


def test_metrics(out):
    text = t.read(out, "metrics.jsonl").decode()
    rows = [json.loads(line) for line in text.splitlines()]
    steps = [r for r in rows if "split" not in r]
    evals = [r for r in rows if "split" in r]
    t.ok([r["step"] for r in steps] == list(range(1, 61)), "metrics.jsonl has every step once")
    t.ok(all(list(r) == STEP_FIELDS for r in steps), "rows of steps have the fields", steps[0])
    t.ok(all(list(r) == EVAL_FIELDS for r in evals) and
         [r["step"] for r in evals] == list(range(10, 61, 10)), "rows of evaluations", evals)
    t.ok(all(math.isclose(r["ppl"], math.exp(r["loss"])) for r in evals), "ppl is exp(loss)")
    t.ok(all(r["tokens"] == r["step"] * 3 * 2 * 16 for r in steps), "tokens are counted")
    t.ok(steps[-1]["loss"] < steps[0]["loss"] - 0.5, "the loss falls", steps[-1])
    t.ok(math.isclose(steps[0]["lr"], 3e-3 / 5) and math.isclose(steps[-1]["lr"], 3e-4),
         "the schedule is the configured one")
    tags = {e[1].count(b"loss/train") and e[0] for e in t.event_steps(out)} - {0}
    t.ok(tags == set(range(1, 61)), "the event file has every step")


def test_events(out):
    """Texts and hyper-parameters stand before the rows, and tags sort with the losses first."""
    events = [e[1] for e in t.event_steps(out)]
    names = sorted(dict(t.fields(dict(t.fields(e))[1]))[1].decode() for e in events)
    t.ok(b"_hparams_/session_start_info" in events[2] and b"LEARNING_RATE" in events[2] and
         b"_hparams_/session_end_info" in events[-1], "hyper-parameters, and that the run ended")
    t.ok(b"CONFIG_LEARNING_RATE" in events[1] and b"arm: none" in events[0], "texts", events[0])
    curves = [n for n in names if "/" in n and not n.startswith("_")]
    t.ok(curves[0].startswith("loss/") and {"loss/train", "loss/val"} <= set(curves),
         "the losses are the first curves", curves)


def test_words(binary, out, tmp):
    """Perplexity says per what; what loses to the baseline says so; memory is explained."""
    run = t.train(binary, out)
    result = json.loads(t.read(out, "result.json"))
    t.ok(result["unit"] == "byte" and re.search(r"^result .*perplexity [\d.]+ per byte$",
                                                run.stdout, re.M), "perplexity is per byte")
    t.ok((result["val_loss"] < result["bigram_loss"]) != ("loses to the bigram" in run.stdout),
         "a result that loses to the baseline says so", run.stdout)
    run = t.train(binary, f"{tmp}/short", "--steps", 1, "--label", "arm 7: a name")
    result = json.loads(t.read(f"{tmp}/short", "result.json"))
    t.ok("loses to the bigram" in run.stdout and result["label"] == "arm 7: a name",
         "so does one of a single step", t.said(run))
    t.ok(any(b"arm: arm 7: a name" in e[1] for e in t.event_steps(f"{tmp}/short")),
         "the event file has the name of the arm")
    t.ok(len(re.findall("MiB planned", run.stdout)) == 2 and "whole process" in run.stdout,
         "both figures of memory say what they are of", run.stdout)


def test_result(out):
    result = json.loads(t.read(out, "result.json"))
    last = [r for r in t.metrics(out) if "split" in r][-1]
    t.ok(result["steps"] == 60 and result["val_loss"] == float(last["loss"]),
         "result.json has the final validation loss", result)
    t.ok(len(result["weights_sha256"]) == 64 and result["params"] > 10000 and
         result["tok_s"] > 0 and result["peak_bytes"] > 1 << 20, "result.json has the figures",
         result)


def test_repeat(binary, out, tmp):
    for threads in (1, 2):
        again = f"{tmp}/again-{threads}"
        t.train(binary, again, threads=threads)
        diff = t.same_run(out, again)
        t.ok(not diff, f"again with {threads} thread(s): the same bits", diff)
    a, b = (json.loads(t.read(o, "result.json")) for o in (out, again))
    t.ok(a["weights_sha256"] == b["weights_sha256"], "the same hash of the weights")
    t.train(binary, f"{tmp}/seed", "--seed", 2)
    t.ok(t.same_run(out, f"{tmp}/seed"), "another seed: other bits")


def test_finished(binary, out, tmp):
    before = t.read(out, "metrics.jsonl"), t.read(out, "result.json")
    run = t.train(binary, out)
    t.ok(run.returncode == 0 and "finished" in run.stdout and "validation loss" in run.stdout,
         "a finished run says so", t.said(run))
    os.remove(f"{out}/result.json")
    run = t.train(binary, out)
    t.ok(run.returncode == 0 and before[1] == t.read(out, "result.json") and
         before[0] == t.read(out, "metrics.jsonl"), "a lost result.json is written again",
         t.said(run))
    again = f"{tmp}/again-1"
    for n in (1, 2):
        run = t.train(binary, again, "--restart")
        diff = t.same_run(out, again)
        t.ok(run.returncode == 0 and f"{again}.old-{n}" in run.stdout and not diff and
             not t.same_run(out, f"{again}.old-{n}"), f"--restart moves the old run to .old-{n}",
             diff + t.said(run))


def on_terminal(width, *command):
    """(status, what came) of a command whose output is a terminal of this width."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    run = subprocess.Popen(command, stdout=slave, stderr=slave, stdin=subprocess.DEVNULL)
    os.close(slave)
    text = b""
    while True:
        try:
            got = os.read(master, 65536)
        except OSError:     # how a terminal says that the other end is gone
            break
        if not got:
            break
        text += got
    os.close(master)
    return run.wait(), text.decode()


def test_terminal(binary, tmp):
    """A line of loss stays every LOG_INTERVAL steps; nothing of the progress is wrapped."""
    try:
        os.close(pty.openpty()[0])
    except OSError:
        t.ok(True, "on a terminal # SKIP this machine has no pseudo-terminals")
        return
    for width in (40, 200):
        status, text = on_terminal(width, binary, "train", "--out", f"{tmp}/pty{width}",
                                   "--threads", "1")
        drawn = [piece for line in text.split("\r\n") for piece in line.split("\r\033[K")
                 if piece.startswith(("step ", "eval "))]
        stay = [line.rpartition("\r\033[K")[2] for line in text.split("\r\n")]
        shown = re.findall(r"^step (\d+)/60  loss [\d.]+", "\n".join(stay), re.M)
        t.ok(status == 0 and shown == ["1"] + [str(i) for i in range(5, 61, 5)],
             f"on a terminal of {width}: a line stays every LOG_INTERVAL steps", text)
        t.ok(drawn and max(map(len, drawn)) < width, f"and none is {width} wide or more", drawn)
    t.ok(max(map(len, drawn)) > 60, "a wide terminal shows all of it", drawn)


def test_refusals(binary, tmp):
    run = t.tenon(binary, "train", "--out", tmp, "--tempo", 3)
    t.ok(t.one_line(run, "--tempo"), "an unknown flag is refused", t.said(run))
    run = t.train(binary, f"{tmp}/x", "--steps", 0)
    t.ok(t.one_line(run, "--steps"), "zero steps are refused", t.said(run))
    t.write(b"", tmp, "file")
    run = t.train(binary, f"{tmp}/file/run")
    t.ok(t.one_line(run, f"{tmp}/file/run", "--out"), "an impossible folder is refused",
         t.said(run))
    run = t.train(binary, "/proc/run")
    t.ok(t.one_line(run, "/proc/run", "--out"), "an unwritable folder is refused", t.said(run))
    run = t.tenon(binary, "eval", "--checkpoint", tmp, "--split", "test")
    t.ok(t.one_line(run, "--split test"), "eval refuses an unknown split", t.said(run))


def test_lock(binary, tmp):
    first = subprocess.Popen([binary, "train", "--out", f"{tmp}/lock", "--steps", "100000"],
                             stdout=subprocess.PIPE, text=True)
    first.stdout.readline()
    for flags in ([], ["--restart"], ["--allow-config-change"], ["--restart", "--seed", 7]):
        second = t.train(binary, f"{tmp}/lock", "--steps", 100000, *flags)
        t.ok(t.one_line(second, "in use by another run") and first.poll() is None and
             not os.path.exists(f"{tmp}/lock.old-1"),
             f"two runs in one folder are refused {' '.join(map(str, flags))}", t.said(second))
    first.kill()
    first.communicate()


def test_moved(binary, tmp):
    """A run whose folder goes away, and may be there again as another's, writes nothing more."""
    for what, replace in (("moved", False), ("moved and made anew", True), ("removed", None)):
        out = f"{tmp}/moved-{replace}"
        run = subprocess.Popen([binary, "train", "--out", out, "--steps", "1000000"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while "step 5/" not in run.stdout.readline():
            pass
        os.rename(out, f"{out}.elsewhere")
        if replace is None:
            shutil.rmtree(f"{out}.elsewhere", ignore_errors=True)
        if replace:
            os.mkdir(out)
        errors = run.communicate(timeout=60)[1]
        said = t.one_line(subprocess.CompletedProcess([], run.returncode, "", errors), out, "moved")
        made = os.listdir(out) if os.path.isdir(out) else []
        t.ok(said and not made, f"a folder that is {what} under a run: one line, nothing is written "
             "there", f"{run.returncode} {errors} {made}")


def test_time_limit(tmp):
    binary, out = t.build("timed"), f"{tmp}/timed"
    first = t.train(binary, out)
    reached = int(t.steps(out)[-1][5:])
    t.ok(first.returncode == 0 and "CONFIG_MAX_TIME=1" in first.stdout and
         [r["step"] for r in t.metrics(out) if "split" in r] == [reached],
         "MAX_TIME ends with an evaluation, a checkpoint and status 0", t.said(first))
    second = t.train(binary, out)
    rows = [r["step"] for r in t.metrics(out) if "split" not in r]
    t.ok(second.returncode == 0 and len(rows) > reached and
         rows == list(range(1, len(rows) + 1)), "then it goes on from there", t.said(second))


def main():
    binary = t.build("small")
    with t.folder() as tmp:
        out = f"{tmp}/run"
        test_output(binary, out)
        test_metrics(out)
        test_events(out)
        test_result(out)
        test_words(binary, out, tmp)
        test_repeat(binary, out, tmp)
        test_finished(binary, out, tmp)
        test_terminal(binary, tmp)
        test_refusals(binary, tmp)
        test_lock(binary, tmp)
        test_moved(binary, tmp)
        test_time_limit(tmp)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
