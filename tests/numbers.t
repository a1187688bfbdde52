#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
float and bf16 against double: loss and every gradient of one batch, from the same initial
weights and tokens. And weights go from a float checkpoint to a bf16 binary and back.

	tests/numbers.t [DEFCONFIG[+FRAGMENT] ...]
"""
import array
import math
import os
import statistics
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402
from bundle import bundle, tokens    # noqa: E402

DEFCONFIGS = ("tiny-gpt2", "tiny-ra-mla-full+ra-mla-arm3")
TYPES = {"double": ["real-double.config"], "float": [], "bf16": ["real-bf16.config"]}
B, T, VOCAB = 4, 64, 256

# The error of a gradient, relative to its norm. A value is rounded some 16 times on its way
# forward and back through a layer, errors of either sign adding up as the root of their
# number: sqrt(16 N_LAYER) UNIT. float's sums add their own rounding, of up to 256 terms.
ROUNDINGS = 16
UNIT = {"float": 2 ** -24 * 4, "bf16": 2 ** -8, "cuda": 2 ** -8}

# What is gathered along topk routes: where bf16 chooses another entry, whose weight is that of
# the k-th but for roundings, another row is gathered. So routing is judged in two parts: the
# choice by its weights, and gradients with the double build's choice in place of bf16's own.
ROUTED = ".mlp.cross_proj."
TOPK = 8                # on a GPU: at most one of K rows is exchanged


def make(tree, *goals):
    return subprocess.run(["make", "-s", "EXTRA_CFLAGS=-g0", f"O={tree}", *goals], cwd=t.SRC,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def build(name, kind):
    defconfig, *fragments = name.split("+")
    tree = os.path.join(t.SCRATCH, "numbers", f"{name}-{kind}")
    os.makedirs(tree, exist_ok=True)
    fragments = [f + ".config" for f in fragments] + TYPES[kind]
    done = make(tree, f"defconfig-{defconfig}", *fragments, "build")
    if done.returncode:
        print("Bail out!", " ".join(done.args), "failed")
        sys.exit(done.stdout)
    return os.path.join(tree, "tenon")


def numbers(path):
    """Loss and gradients of a bundle."""
    header, data, meta = bundle(path)
    layers = next(int(line.split("=")[1]) for line in meta["config"].splitlines()
                  if line.startswith("CONFIG_N_LAYER="))
    out = {name: array.array("d" if header[name]["dtype"] == "F64" else "f", raw)
           for name, raw in data.items() if name == "loss" or name.startswith("grad.")}
    return out, layers


def distance(x, want):
    size = math.sqrt(sum(b * b for b in want))
    error = math.sqrt(sum((a - b) ** 2 for a, b in zip(x, want)))
    return error / size if size else math.inf if error else 0


def test_gradients(name, binaries, d, length=T, plain=None):
    """
    Those of every binary against the one in double. @plain: one that is not tested itself;
    the others may err twice as much as it does.
    """
    tokens(f"{d}/tok", B, length, VOCAB)
    got = {}
    for kind, binary in binaries.items():
        done = t.tenon(binary, "dump", "--tokens", f"{d}/tok", "--out", f"{d}/{kind}", "--batch",
                       B, "--length", length, "--init", 3, "--threads", 1)
        if not t.ok(done.returncode == 0, f"{name}: {kind} gives numbers", t.said(done)):
            return
        got[kind], layers = numbers(f"{d}/{kind}")
    off = {kind: {n: distance(got[kind][n], want) for n, want in got["double"].items()}
           for kind in binaries if kind != "double"}
    for kind, errors in off.items():
        if kind == plain:
            continue
        bound = math.sqrt(ROUNDINGS * layers) * UNIT[kind]
        bounds = {n: max(bound, 2 * off[plain][n] if plain else 0) for n in errors}
        routed = {n: e for n, e in errors.items() if kind != "float" and ROUTED in n}
        worst = max((n for n in errors if n not in routed), key=lambda n: errors[n] / bounds[n])
        t.ok(errors[worst] <= bounds[worst], f"{name}: {kind}: gradients are those of double "
             f"(worst {errors[worst]:.2g} of {bounds[worst]:.2g}, {worst})", errors)
        if routed and kind == "bf16":
            test_routes(name, binaries, d)
        elif routed:
            t.ok(max(routed.values()) <= math.sqrt(2 / TOPK), f"{name}: {kind}: and those of "
                 f"routed values (worst {max(routed.values()):.2g})", routed)


# ---- routing -----------------------------------------------------------------

def route_lists(path):
    """[rows of {entry: weight}] of each sub-layer that routes."""
    header, data, _ = bundle(path)
    out = []
    for name in sorted(n for n in data if n.endswith(".index")):
        k, weight = header[name]["shape"][-1], name.replace(".index", ".weight")
        index = array.array("i", data[name])
        values = array.array("d" if header[weight]["dtype"] == "F64" else "f", data[weight])
        out.append([{u: w for u, w in zip(index[at:at + k], values[at:at + k]) if u >= 0}
                    for at in range(0, len(index), k)])
    return out


def choices(want, got, layers):
    """(rows that chose otherwise, the largest distance of a weight, over what is allowed).

    A weight is the exponential of a score, so its relative error is the score's error: that of
    as many roundings, relative to the scores' size, for which the spread of a row's kept ones
    stands. Allowed is twice that. An entry that double did not choose must be as good as its
    k-th.
    """
    spread = [math.log(max(row.values()) / min(row.values())) for row in want]
    allowed = 2 * math.sqrt(ROUNDINGS * layers) * UNIT["bf16"] * statistics.median(spread)
    worst = 0
    for row, mine in zip(want, got):
        least = min(row.values())
        worst = max([worst] + [abs(w / row.get(u, least) - 1) for u, w in mine.items()])
        if len(row) != len(mine):
            worst = math.inf
    return sum(row.keys() != mine.keys() for row, mine in zip(want, got)), worst / allowed


def test_routes(name, binaries, d):
    for kind in ("double", "bf16"):
        tree = os.path.dirname(binaries[kind])
        made = make(tree, "check-programs", "PROGRAMS=routes")
        if not t.ok(made.returncode == 0, f"{name}: {kind}: tests/routes.c is built", made.stdout):
            return
        done = t.tenon(f"{tree}/tests/routes", f"{d}/routes-{kind}", f"{d}/tok", 3, B, T,
                       *[f"{d}/routes-double"] * (kind == "bf16"))
        if not t.ok(done.returncode == 0, f"{name}: {kind} gives its routes", t.said(done)):
            return
    want, layers = numbers(f"{d}/routes-double")
    got, _ = numbers(f"{d}/routes-bf16")
    for at, rows in enumerate(zip(route_lists(f"{d}/routes-double"),
                                  route_lists(f"{d}/routes-bf16"))):
        other, worst = choices(*rows, layers)
        t.ok(worst <= 1, f"{name}: bf16: {other} of {len(rows[0])} rows of route {at} choose "
             f"otherwise, as well as double but for roundings (worst {worst:.2g} of 1)")
    bound = math.sqrt(ROUNDINGS * layers) * UNIT["bf16"]
    errors = {n: distance(got[n], x) for n, x in want.items()}
    worst = max(errors, key=errors.get)
    t.ok(errors[worst] <= bound, f"{name}: bf16: with double's choice gradients are those of "
         f"double (worst {errors[worst]:.2g} of {bound:.2g}, {worst})", errors)


# ---- weights -----------------------------------------------------------------

def val_loss(done):
    return float(done.stdout.split("val loss ")[1].split()[0]) if not done.returncode else 0


def test_checkpoints(name, binaries, d, low="bf16"):
    """Masters are float in both; double is of another width."""
    for kind, other in (("float", low), (low, "float")):
        done = t.train(binaries[kind], f"{d}/{kind}-run", "--steps", 6)
        own = t.tenon(binaries[kind], "eval", "--checkpoint", f"{d}/{kind}-run")
        far = t.tenon(binaries[other], "eval", "--checkpoint", f"{d}/{kind}-run")
        t.ok(own.stderr == "" and far.stderr.count("\n") == 1 and "its weights are used" in
             far.stderr, f"{name}: {other} says that it reads weights of {kind}",
             t.said(done) + t.said(own) + t.said(far))
        t.ok(0 < abs(val_loss(far) - val_loss(own)) < 2 ** -8 * val_loss(own),
             f"{name}: {other} evaluates them alike", t.said(own) + t.said(far))
        done = t.train(binaries[other], f"{d}/{kind}-run", "--steps", 8)
        t.ok(t.one_line(done, "REAL_BF16 (was", "--allow-config-change"),
             f"{name}: {other} does not go on with a run of {kind} unasked", t.said(done))
        done = t.train(binaries[other], f"{d}/{kind}-run", "--steps", 8, "--allow-config-change")
        t.ok(done.returncode == 0, f"{name}: and does when asked", t.said(done))
    if "double" not in binaries:
        return
    done = t.tenon(binaries["double"], "eval", "--checkpoint", f"{d}/float-run")
    t.ok(t.one_line(done, "REAL_DOUBLE (was n, is y)"), f"{name}: double refuses them",
         t.said(done))


def main():
    for i, name in enumerate(sys.argv[1:] or DEFCONFIGS):
        binaries = {kind: build(name, kind) for kind in TYPES}
        with t.folder() as d:
            test_gradients(name, binaries, d)
            if not i:
                test_checkpoints(name, binaries, d)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
