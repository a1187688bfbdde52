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

DEFCONFIGS = ("tiny-gpt2", "tiny-ra-mla-full+ra-mla-arm3", "tiny-mamba2")
TYPES = {"double": ["real-double.config"], "float": [], "bf16": ["real-bf16.config"]}
B, T, VOCAB = 4, 64, 256

# The error of a gradient, relative to its norm. A value is rounded some 16 times on its way
# forward and back through a layer, errors of either sign adding up as the root of their
# number: sqrt(16 N_LAYER) UNIT. float's sums add their own rounding, of up to 256 terms.
ROUNDINGS = 16
# Attention on tensor cores rounds probabilities and the gradient of scores as well, each on its
# way to two products.
MORE_ROUNDINGS = {"cuda": 4}
UNIT = {"float": 2 ** -24 * 4, "bf16": 2 ** -8, "cuda": 2 ** -8,
        "cuda-float": 2 ** -24 * 4, "cuda-tf32": 2 ** -11}

# What is gathered along topk routes: where bf16 chooses another entry, whose weight is that of
# the k-th but for roundings, another row is gathered. So routing is judged in two parts: the
# choice by its weights, and gradients with the double build's choice in place of bf16's own.
ROUTED = ".mlp.cross_proj."
FEW = (".attn.A_log", ".attn.D", ".attn.dt_bias")    # of mamba2: a number a head
TOPK = 8


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


def build_routes(binaries):
    """{kind: tests/routes} in the object trees of these binaries."""
    made = {}
    for kind, binary in binaries.items():
        tree = os.path.dirname(binary)
        done = make(tree, "check-programs", "PROGRAMS=routes")
        if done.returncode:
            print("Bail out! tests/routes.c is not built")
            sys.exit(done.stdout)
        made[kind] = f"{tree}/tests/routes"
    return made


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


def roundings(layers, kind):
    """Relative error of as many roundings, each of its own."""
    return math.sqrt((ROUNDINGS + MORE_ROUNDINGS.get(kind, 0)) * layers) * UNIT[kind]


def chance(name, n):
    """
    Of n errors of one deviation, the root of the mean square over that, at most: three deviations
    of it. For FEW alone, each element of which is one sum over all positions.
    """
    return 1 + 3 / math.sqrt(2 * n) if name.endswith(FEW) else 1


def test_gradients(name, binaries, d, length=T, plain=None, programs=build_routes):
    """
    Those of every binary against the one in double. @plain: one that is not tested itself;
    the others may err twice as much as it does. @programs: gives tests/routes of binaries
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
        bound = roundings(layers, kind)
        bounds = {n: max(bound * chance(n, len(got["double"][n])), 2 * off[plain][n] if plain else 0)
                  for n in errors}
        routed = [n for n in errors if not kind.endswith("float") and ROUTED in n]
        worst = max((n for n in errors if n not in routed), key=lambda n: errors[n] / bounds[n])
        t.ok(errors[worst] <= bounds[worst], f"{name}: {kind}: gradients are those of double "
             f"(worst {errors[worst]:.2g} of {bounds[worst]:.2g}, {worst})", errors)
        if routed:
            test_routes(name, programs(binaries), d, kind, length, plain)


# ---- routing -----------------------------------------------------------------

def route_lists(path):
    """[rows of {entry: weight}] of each sub-layer that routes by topk."""
    header, data, _ = bundle(path)
    out = []
    for name in sorted(n for n in data if n.endswith(".index")):
        k, weight = header[name]["shape"][-1], name.replace(".index", ".weight")
        index = array.array("i", data[name])
        values = array.array("d" if header[weight]["dtype"] == "F64" else "f", data[weight])
        out.append([{u: w for u, w in zip(index[at:at + k], values[at:at + k]) if u >= 0}
                    for at in range(0, len(index), k)])
    return out


def thresholds(path):
    """[thresholds of every row] of each sub-layer that routes by them."""
    header, data, _ = bundle(path)
    return [array.array("d" if header[n]["dtype"] == "F64" else "f", data[n])
            for n in sorted(data) if n.endswith(".thr")]


def allowed_error(want, layers, kind):
    """Of a weight, relative: it is the exponential of a score, so its error is the score's: that
    of as many roundings, relative to the scores' size, for which the spread of a row's kept ones
    stands. Allowed is twice that."""
    spread = [math.log(max(row.values()) / min(row.values())) for row in want]
    return 2 * roundings(layers, kind) * statistics.median(spread)


def choices(want, got):
    """(rows that chose otherwise, the largest relative distance of a weight).

    An entry that double did not choose must be as good as its k-th.
    """
    worst = 0
    for row, mine in zip(want, got):
        least = min(row.values())
        worst = max([worst] + [abs(w / row.get(u, least) - 1) for u, w in mine.items()])
        if len(row) != len(mine):
            worst = math.inf
    return sum(row.keys() != mine.keys() for row, mine in zip(want, got)), worst


def test_choices(name, d, kind, layers, plain):
    """What every route selects. @plain: the error that is doubled is measured, its own."""
    lists = {k: route_lists(f"{d}/routes-{k}") for k in {"double", kind, plain} - {None}}
    for at, want in enumerate(lists["double"]):
        other, error = choices(want, lists[kind][at])
        bound = 2 * choices(want, lists[plain][at])[1] if plain else \
            allowed_error(want, layers, kind)
        t.ok(error <= bound, f"{name}: {kind}: {other} of {len(want)} rows of route {at} choose "
             f"otherwise, as well as double but for roundings (worst {error:.2g} of {bound:.2g})")
    limits = {k: thresholds(f"{d}/routes-{k}") for k in {"double", kind, plain} - {None}}
    for at, want in enumerate(limits["double"]):
        off = {k: max(abs(x - y) / y if y else abs(x) for x, y in zip(limits[k][at], want))
               for k in limits}
        bound = 2 * off[plain] if plain else 2 * roundings(layers, kind)
        t.ok(off[kind] <= bound, f"{name}: {kind}: thresholds of route {at} are those of double "
             f"(worst {off[kind]:.2g} of {bound:.2g})")


def test_routes(name, programs, d, kind, length, plain=None):
    """@programs: {kind: tests/routes}; @plain: as of test_gradients()"""
    for k in dict.fromkeys(("double", plain or kind, kind)):
        done = t.tenon(programs[k], f"{d}/routes-{k}", f"{d}/tok", 3, B, length,
                       *[f"{d}/routes-double"] * (k != "double"))
        if not t.ok(done.returncode == 0, f"{name}: {k} gives its routes", t.said(done)):
            return
    want, layers = numbers(f"{d}/routes-double")
    off = {k: {n: distance(x[n], want[n]) for n in want}
           for k in {kind, plain} - {None} for x in [numbers(f"{d}/routes-{k}")[0]]}
    test_choices(name, d, kind, layers, plain)
    bound = roundings(layers, kind)
    bounds = {n: max(bound, 2 * off[plain][n] if plain else 0) for n in want}
    worst = max(want, key=lambda n: off[kind][n] / bounds[n])
    t.ok(off[kind][worst] <= bounds[worst], f"{name}: {kind}: with double's choice gradients are "
         f"those of double (worst {off[kind][worst]:.2g} of {bounds[worst]:.2g}, {worst})",
         off[kind])


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
