#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""make bench: Tenon against PyTorch and against the machine.

    bench.py --objtree DIR [--threads N] [--rounds N] [CASE...]

A case is training steps or decode steps of one configuration, on random tokens. Ours: a
float and a bf16 build. Theirs: eager, compiled (torch.compile), and compiled bf16. All
take turns (A B C A B C ...), so that a slow minute of the machine meets each. Under each
case: medians, the best float of both and the bf16 of both, and ours against what the
machine allows: a training step's products at a library's speed and its optimizer's bytes
at the speed of a copy; a decode step's weights and caches at the speed of a copy.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

import bench_limits
from dotconfig import DotConfig

SCRIPTS = os.path.dirname(os.path.abspath(__file__))
VENV = "build/torch/bin/python"          # made by scripts/setup.sh bench
DEBIAN = "/usr/bin/python3"
BUILDS = {"float": [], "bf16": ["real-bf16"]}
# PyTorch's large temporaries are kept, not given back page by page: eager is up to twice as fast.
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
WAYS = {"eager": "eager float", "compiled": "compiled float", "bf16": "compiled bf16"}

GPT2 = {"GRADIENT_ACCUMULATION": 1}
# name: defconfig, fragments, symbols, (timed steps of a turn, warmup), (sequences, tokens)
CASES = {
    "gpt2-124m": ("gpt2-124m", [], {**GPT2, "BATCH_SIZE": 4, "BLOCK_SIZE": 64}, (3, 1), None),
    "gpt2-124m-long": ("gpt2-124m", [], {**GPT2, "BATCH_SIZE": 1}, (2, 1), None),
    "tiny-arm3": ("tiny-ra-mla-full", ["ra-mla-arm3"], {}, (50, 5), None),
    "study-063-gla": ("study-063-gla", [], {}, (10, 3), None),
    "study-053-gla": ("study-053-gla", [], {}, (5, 2), None),
    "decode-1": ("gpt2-124m", [], {**GPT2, "BATCH_SIZE": 8}, (20, 3), (1, 512)),
    "decode-8": ("gpt2-124m", [], {**GPT2, "BATCH_SIZE": 8}, (20, 3), (8, 512)),
}


class BenchError(Exception):
    """One line for the user."""


def output(command):
    """stdout of a command; its stderr where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise BenchError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def find_torch():
    """(python, its version of PyTorch), the one of the bench's own before others."""
    for python in (VENV, sys.executable, DEBIAN):
        if os.path.exists(python):
            done = subprocess.run([python, "-c", "import torch; print(torch.__version__)"],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            if not done.returncode:
                return python, done.stdout.strip()
    raise BenchError("PyTorch is missing; run: sh scripts/setup.sh bench")


# ---- ours ------------------------------------------------------------------------


def flags(steps, warmup, decode):
    """Those of `tenon bench`; @decode: None or (sequences, tokens)."""
    return ["--steps", str(steps), "--warmup", str(warmup)] + \
        (["--decode", "--batch", str(decode[0]), "--length", str(decode[1])] if decode else [])


class Turns:
    """Turns of one command that prints what `tenon bench --json` does."""

    def __init__(self, command):
        self.command, self.turns = command, []

    def turn(self):
        self.turns.append(json.loads(output(self.command)))

    def middle(self):
        """The turn whose step is the median."""
        return sorted(self.turns, key=lambda r: r["step"])[(len(self.turns) - 1) // 2]

    def seconds(self):
        return self.middle()["step"]


class Tenon(Turns):
    """One build of a case."""

    def __init__(self, case, number, objtree, threads):
        self.defconfig, fragments, symbols, (steps, warmup), decode = CASES[case]
        # cases of one configuration share their binaries
        name = "-".join([self.defconfig, *fragments, *map(str, symbols.values()), number])
        self.tree = os.path.join(objtree, name)
        self.build(fragments + BUILDS[number], symbols)
        super().__init__([f"{self.tree}/tenon", "bench", "--json", "--threads", str(threads),
                          *flags(steps, warmup, decode)])

    def build(self, fragments, symbols):
        os.makedirs(self.tree, exist_ok=True)
        extra = os.path.join(self.tree, "bench.config")
        with open(extra, "w", encoding="utf-8") as f:
            f.writelines(f"CONFIG_{k}={v}\n" for k, v in symbols.items())
        output([sys.executable, "scripts/kconfig.py", "--config", f"{self.tree}/.config", "--gen",
                self.tree, "defconfig", self.defconfig] +
               [f"defconfigs/{f}.config" for f in fragments] + ([extra] if symbols else []))
        output(["make", "-s", f"-j{os.cpu_count()}", f"O={self.tree}", "build"])
        with open(f"{self.tree}/plan.json", "w", encoding="utf-8") as f:
            f.write(output([f"{self.tree}/tenon", "plan", "--json"]))


# ---- theirs ----------------------------------------------------------------------


class Torch:
    """One way of the peer: a process that waits for its turns, once read() has said that it
    is ready. @work: (timed steps of a turn, warmup), None or (sequences, tokens)"""

    def __init__(self, way, device, work, tree, python, threads):
        (steps, warmup), decode = work
        command = [python, f"{SCRIPTS}/bench_torch.py", way, device, f"{tree}/.config",
                   f"{tree}/plan.json", str(steps), str(warmup), str(threads),
                   *map(str, decode or [])]
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.errors, text=True,
                                        env={**os.environ, **KEEP})
        self.turns = []
        self.memory = 0

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or ["it ended without a word"]
            # what PyTorch advises stands behind the error
            raise BenchError(next((s for s in reversed(said) if re.match(r"[\w.]*(Error|Failed)", s)),
                                  said[-1]))
        return json.loads(line)

    def turn(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        said = self.read()
        self.turns.append(said["step"])
        self.memory = said.get("memory", 0)

    def seconds(self):
        return statistics.median_low(self.turns)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def start_peers(case, tree, python, threads):
    """{way: Torch}; a way that this version lacks is said in one line and left out."""
    peers = {}
    for way in WAYS:
        try:
            peer = Torch(way, "cpu", CASES[case][3:5], tree, python, threads)
            peer.read()
            peers[way] = peer
        except BenchError as error:
            print(f"{case}: torch, {WAYS[way]}: not here: {error}", flush=True)
    if not peers:
        raise BenchError(f"{case}: PyTorch runs in none of its ways")
    return peers


# ---- what is printed -------------------------------------------------------------


def against_machine(tenon, threads):
    """Lines: a float step against what the machine allows."""
    middle = tenon.middle()
    if "copy_bytes_s" in middle:
        read = middle["weight_bytes"] + middle["cache_bytes"]
        least = read / middle["copy_bytes_s"]
        return [f"  weights and caches {read / 1e6:.0f} MB {least * 1e3:10.2f} ms  "
                f"(read once at the speed of a copy, {middle['copy_bytes_s'] / 1e9:.1f} GB/s)",
                f"  step / that = {middle['step'] / least:.2f}"]
    cfg = DotConfig.load(f"{tenon.tree}/.config")
    with open(f"{tenon.tree}/plan.json", encoding="utf-8") as f:
        plan = json.load(f)
    library, blas, work = bench_limits.blas_seconds(plan, threads)
    speed, micro = work / blas, cfg.i("GRADIENT_ACCUMULATION")
    blas, rest = blas * micro, (bench_limits.step_flops(plan) - work) / speed * micro
    copy = bench_limits.optimizer_seconds(middle["elements"], threads)
    return [f"  matrix products {blas * 1e3:10.2f} ms  ({library}, {speed / 1e9:.0f} GFLOP/s)",
            f"  attention       {rest * 1e3:10.2f} ms  (its operations at that speed)",
            f"  optimizer bytes {copy * 1e3:10.2f} ms  (at the speed of a copy)",
            f"  step / (products + attention + bytes) = {middle['step'] / (blas + rest + copy):.2f}"]


def ratio(ours, theirs, what):
    return [f"  {what}: tenon is {min(theirs) / ours:.2f} times as fast as the best of torch"] \
        if theirs else []


def report(case, tenons, peers, threads):
    cfg = DotConfig.load(f"{tenons['float'].tree}/.config")
    decode = CASES[case][4]
    tokens = decode[0] if decode else tenons["float"].middle()["tokens"]
    print(f"{case}: " + (f"{decode[0]} x 1 token behind {decode[1]}" if decode else
                         f"{cfg.i('BATCH_SIZE')} x {cfg.i('BLOCK_SIZE')} tokens") +
          f", {threads} threads, {len(tenons['float'].turns)} turns of each")
    rows = [(f"tenon {k}", x) for k, x in tenons.items()] + \
        [(f"torch {WAYS[k]}", x) for k, x in peers.items()]
    for name, x in rows:
        print(f"  {name:20} {tokens / x.seconds():10.0f} tok/s {x.seconds() * 1e3:10.2f} ms")
    floats = [x.seconds() for way, x in peers.items() if way != "bf16"]
    narrow = [x.seconds() for way, x in peers.items() if way == "bf16"]
    lines = ratio(tenons["float"].seconds(), floats, "float") + \
        ratio(tenons["bf16"].seconds(), narrow, "bf16") + \
        against_machine(tenons["float"], threads)
    print("\n".join(lines), flush=True)


def bench(case, args, python):
    tenons = {number: Tenon(case, number, args.objtree, args.threads) for number in BUILDS}
    peers = start_peers(case, tenons["float"].tree, python, args.threads)
    everybody = [(f"tenon {k}", x) for k, x in tenons.items()] + \
        [(f"torch {k}", x) for k, x in peers.items()]
    for number in range(args.rounds):
        for _, x in everybody:
            x.turn()
        print(f"{case} turn {number + 1}, ms: " + ", ".join(
            f"{name} {1e3 * (x.turns[-1]['step'] if isinstance(x, Tenon) else x.turns[-1]):.2f}"
            for name, x in everybody), flush=True)
    for x in peers.values():
        x.close()
    report(case, tenons, peers, args.threads)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objtree", default="build/bench", help="binaries are built below it")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each program")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    args = parser.parse_args()
    try:
        unknown = set(args.cases) - set(CASES)
        if unknown:
            raise BenchError(f"unknown case {min(unknown)}; there are {', '.join(CASES)}")
        python, version = find_torch()
        print(f"PyTorch {version} ({python}), with fused AdamW and scaled_dot_product_attention" +
              ("" if python == VENV else ": found here, a newer one could not be installed"))
        for case in args.cases or CASES:
            bench(case, args, python)
    except (BenchError, OSError) as error:
        print(f"tenon: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
