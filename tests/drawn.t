#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Drawn data: `tenon data` against tests/drawn.py bit by bit, the order of training, accuracy
and floor of evaluations, best checkpoint, STOP_ACCURACY, refusals. One small model on four
sources."""
import json
import os
import shutil
import struct
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import drawn            # noqa: E402
import training as t    # noqa: E402
from bundle import bundle, floats    # noqa: E402

sys.path.insert(0, os.path.join(t.SRC, "scripts"))
import study_state      # noqa: E402

SEED, RUN_SEED, T, V, B, MICROS = 42, 1337, 16, 256, 2, 3     # the last four of training.SMALL
# Less than the sequences of a step, so that the first step begins another epoch.
VAL, TEST, TRAIN = 1000, 5, 5
SMALL = ["DATA_TREE=n", f"DATA_TEST_SEQS={TEST}", f"DATA_VAL_SEQS={VAL}", "EVAL_SAMPLES=100000"]
RECALL = {"study": ["DATA_MQAR=y", "MQAR_PAIRS=5", f"DATA_TRAIN_SEQS={TRAIN}", 'STOP_ACCURACY="0.001"'],
          "zoology": ["DATA_MQAR=y", 'MQAR_FORM="zoology"', "MQAR_PAIRS=3", "MQAR_NOISE=y",
                      'MQAR_POWER_A="0.5"', "DATA_FRESH=y"]}
CHAINS = {"markov": ["DATA_MARKOV=y"],
          "markov2": ["DATA_MARKOV=y", "MARKOV_ORDER=2", "MARKOV_SYMBOLS=7"]}
for name, lines in {**RECALL, **CHAINS}.items():
    t.VARIANTS[name] = SMALL + lines


def rows(data, name):
    numbers = struct.unpack(f"<{len(data[name]) // 4}i", data[name])
    return [list(numbers[i:i + T]) for i in range(0, len(numbers), T)]


def drawn_by(binary, d, split, n):
    """[(inputs, targets)] of `tenon data`."""
    done = t.tenon(binary, "data", "--split", split, "--count", n, "--out", f"{d}/data")
    header, data, _ = bundle(f"{d}/data")
    t.ok(done.returncode == 0 and all(header[x]["dtype"] == "I32" and header[x]["shape"] == [n, T]
                                      for x in ("inputs", "targets")), f"data: {split}", t.said(done))
    return list(zip(rows(data, "inputs"), rows(data, "targets")))


def recall(form, split, j, **kw):
    form_of = {"study": (5, "study"), "zoology": (3, "zoology", 0.5, True)}[form]
    return drawn.mqar(SEED + split, j, T, V, *form_of, **kw)


def leaks(form, split, j):
    """Whether an input other than the pairs' own values says something of the values."""
    inputs, targets = recall(form, split, j)
    p = sum(y >= 0 for y in targets)
    others = [V // 2 + (v + 1) % (V // 2) for v in inputs[1:2 * p:2]]
    changed = [i for i, (a, b) in enumerate(zip(inputs, recall(form, split, j, other=others)[0]))
               if a != b]
    return changed != list(range(1, 2 * p, 2)) or \
        any(x == y for x, y in zip(inputs, targets) if y >= 0)


def test_data(name, binary, d):
    chain = drawn.Markov(SEED, *{"markov": (1, V), "markov2": (2, 7)}[name]) if name in CHAINS else None
    seen = set()
    for split, word in enumerate(("train", "val", "test")):
        got = drawn_by(binary, d, word, TEST)
        want = [chain.row(split, j, T) if chain else recall(name, split, j) for j in range(TEST)]
        t.ok(got == [tuple(x) for x in want], f"{name}_{word}_is_what_the_formulas_say",
             next((p for p in zip(got, want) if p[0] != tuple(p[1])), ""))
        seen |= {tuple(x) for x, _ in got}
        if not chain:
            t.ok(not any(leaks(name, split, j) for j in range(TEST)), f"{name}_{word}_leaks_nothing")
    t.ok(len(seen) == 3 * TEST, f"{name}_sequences_are_different")
    return chain


# ---- evaluation -------------------------------------------------------------------

def dump(binary, d, batch, *weights):
    """(logits by position, loss, targets) of some sequences."""
    tokens = [x for part in zip(*batch) for row in part for x in row]
    t.write(struct.pack(f"<{len(tokens)}i", *tokens), d, "tok")
    done = t.tenon(binary, "dump", "--targets", f"{d}/tok", "--out", f"{d}/dump", "--batch",
                   len(batch), "--length", T, *weights)
    assert done.returncode == 0, t.said(done)
    _, data, _ = bundle(f"{d}/dump")
    logits, width = floats(data["logits"]), len(floats(data["logits"])) // (len(batch) * T)
    return [logits[i:i + V] for i in range(0, len(logits), width)], floats(data["loss"])[0], \
        [y for _, targets in batch for y in targets]


def evaluated(binary, d, out, sequences):
    """(loss, accuracy) over sequences, batch by batch, from dumps of a run's best checkpoint."""
    loss = right = scored = 0
    for i in range(0, len(sequences), B):
        logits, mean, targets = dump(binary, d, sequences[i:i + B], "--checkpoint", out)
        some = [(x.index(max(x)), y) for x, y in zip(logits, targets) if y >= 0]
        loss += mean * len(some)
        right += sum(x == y for x, y in some)
        scored += len(some)
    return loss / scored, right / scored


def words_of(done):
    """{name: value} of the line that eval prints."""
    words = done.stdout.split()
    return {w: float(words[words.index(w) + 1]) for w in ("loss", "acc", "floor") if w in words}


def test_eval(name, binary, d, out, chain):
    """A split of two batches and half a one."""
    sequences = drawn_by(binary, d, "test", TEST)
    done = t.tenon(binary, "eval", "--checkpoint", out, "--split", "test")
    got, (loss, acc) = words_of(done), evaluated(binary, d, out, sequences)
    t.ok(f"({TEST} sequences of {T})" in done.stdout and abs(got["loss"] - loss) < 2e-6 * loss + 1e-6
         and abs(got["acc"] - acc) <= 5e-5, f"{name}_eval_is_that_of_the_logits",
         (t.said(done), loss, acc))
    if chain:
        floor = sum(chain.loss(*x) for x in sequences) / (TEST * T)
        t.ok(abs(got["floor"] - floor) <= 5.1e-5, f"{name}_floor_is_the_chain's", (got, floor))
    else:
        t.ok("floor" not in got, f"{name}_has_no_floor", got)
    through = t.tenon(binary, "eval", "--checkpoint", out, "--split", "test", "--decode", 3)
    a, b = (float(w) for w in through.stdout.replace(" from", " loss ").split()
            if w.count(".") == 1 and w.replace(".", "").isdigit())
    t.ok(abs(a - b) < 1e-4 and (chain or abs(a - loss) < 1e-4), f"{name}_decode_agrees",
         t.said(through))


def test_order(name, binary, d, out):
    """The first step's loss is that of the sequences that the formulas name."""
    first = t.metrics(out)[0]
    numbers = [i if name == "zoology" else drawn.training_number(RUN_SEED, i, TRAIN)
               for i in range(B * MICROS)]
    batch = [recall(name, 0, j) for j in numbers]
    losses = [dump(binary, d, batch[i:i + B], "--init", RUN_SEED)[1] for i in range(0, len(batch), B)]
    mean = sum(losses) / MICROS
    t.ok(abs(float(first["loss"]) - mean) < 1e-6 * mean, f"{name}_training_is_in_its_order",
         (numbers, first, losses))


# ---- runs -------------------------------------------------------------------------

def evaluations(out):
    return [r for r in t.metrics(out) if "split" in r]


def result(out):
    return json.loads(t.read(out, "result.json"))


def test_best(binary, d, out):
    """The highest accuracy, and of several the lowest loss; what is remembered over a resume."""
    rows_of = evaluations(out)
    best = max(rows_of, key=lambda r: (float(r["acc"]), -float(r["loss"])))
    got = result(out)
    t.ok(len(rows_of) == 6 and list(rows_of[0]) == ["step", "split", "loss", "ppl", "acc"] and
         got["best_step"] == best["step"] and got["best_acc"] == float(best["acc"]) and
         got["val_acc"] == float(rows_of[-1]["acc"]) and not got["reached"] and
         os.readlink(f"{out}/best").endswith(f"{best['step']:06d}"), "best_is_by_accuracy", rows_of)
    shutil.copytree(out, f"{d}/again", symlinks=True)
    shutil.rmtree(f"{d}/again/{t.steps(out)[-1]}")
    done = t.train(binary, f"{d}/again")
    t.ok(done.returncode == 0 and "resume" in done.stdout and not t.same_run(out, f"{d}/again"),
         "resumed_run_is_the_same", t.said(done) + t.same_run(out, f"{d}/again"))


def test_stop(binary, out, run):
    """5,000 answers, values of which 1 in 128 is right by chance: it stops at once or soon."""
    rows_of, got = evaluations(out), result(out)
    last = rows_of[-1]
    t.ok(run.returncode == 0 and got["reached"] and got["steps"] == last["step"] < 60 and
         float(last["acc"]) >= 0.001 and all(float(r["acc"]) < 0.001 for r in rows_of[:-1]) and
         f"CONFIG_STOP_ACCURACY=0.001 at step {last['step']}" in run.stdout and
         t.steps(out)[-1] == f"ckpt-{last['step']:06d}", "run_stops_at_its_accuracy", t.said(run))
    before = t.metrics(out)
    again = t.train(binary, out)
    t.ok(again.returncode == 0 and "accuracy by step" in again.stdout and t.metrics(out) == before,
         "stopped_run_is_finished", t.said(again))
    events = [e[1] for e in t.event_steps(out)]
    t.ok(any(b"acc/val" in e for e in events), "tensorboard_has_the_accuracy")


def test_tables(d):
    """Of two runs of one arm, and of a run whose accuracy ended it."""
    done = subprocess.run([t.PYTHON, "scripts/table.py", f"{d}/zoology", f"{d}/again"], cwd=t.SRC,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    cells = [[c.strip() for c in line.split("|")] for line in done.stdout.splitlines() if "|" in line]
    acc = f"{result(f'{d}/zoology')['val_acc']:.4f}"
    t.ok("val acc" in cells[0] and [c[cells[0].index("val acc")] for c in cells[2:]] == [acc] * 2,
         "a_table_has_the_accuracy", done.stdout)
    one = study_state.Study(d, {"arms": [], "runs": [{"folder": "study", "state": "running"}]})
    one.refresh()
    run = one.record["runs"][0]
    t.ok(run["state"] == "done" and run["steps"] == result(f"{d}/study")["steps"] < 60,
         "a_run_that_its_accuracy_ended_is_done", run)


def test_refusals(binary, d):
    for what, words, args in (
            ("another split", ["--split tests", "train, val or test"], ["--split", "tests"]),
            ("more than the split", ["--count 6", "DATA_", "TEST_SEQS"],
             ["--split", "test", "--count", TEST + 1]),
            ("a path", ["--data x", "leave it away"], ["--data", "x"])):
        done = t.tenon(binary, "data", "--count", 1, "--out", f"{d}/no", *args)
        t.ok(t.one_line(done, *words) and not os.path.exists(f"{d}/no"), f"data_refuses_{what}",
             t.said(done))
    done = t.tenon(binary, "data", "--split", "test")
    t.ok(t.one_line(done, "--count", "--out"), "data_wants_a_file", t.said(done))
    done = t.tenon(binary, "data", "--count", 1, "--out", f"{d}/missing/no")
    t.ok(t.one_line(done, "missing/no"), "data_names_what_it_cannot_write", t.said(done))


def test_fragments(d):
    for name, source in (("mqar-zoology", "MQAR"), ("markov2", "MARKOV")):
        done = subprocess.run([t.PYTHON, "scripts/kconfig.py", "--config", f"{d}/.config", "--gen", d,
                               "defconfig", "tiny-gpt2", f"{name}.config"], cwd=t.SRC,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        t.ok(done.returncode == 0 and f"CONFIG_DATA_{source}=y" in t.read(d, ".config").decode(),
             f"fragment_{name}", done.stdout)


def main():
    with t.folder() as d:
        test_fragments(d)
        for name in (*CHAINS, *RECALL):
            binary, out = t.build(name), f"{d}/{name}"
            chain = test_data(name, binary, d)
            run = t.train(binary, out)
            t.ok(run.returncode == 0, f"{name}_trains", t.said(run))
            test_eval(name, binary, d, out, chain)
            if name in RECALL:
                test_order(name, binary, d, out)
            if name == "study":
                test_stop(binary, out, run)
            if name == "zoology":
                test_best(binary, d, out)
                done = t.tenon(binary, "eval", "--checkpoint", f"{d}/study")
                t.ok(done.returncode == 0 and " acc " in done.stdout, "another_form_evaluates_a_run",
                     t.said(done))
        test_tables(d)
        test_refusals(binary, d)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
