#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""make bench: training steps of Tenon against PyTorch and against the machine.

    bench.py --objtree DIR [--threads N] [--rounds N] [CASE...]

Both programs run the same model on random tokens with the same number of threads,
in turn (A B A B ...), so that a slow minute of the machine meets both. Under each
case: medians, their ratio, and the step against the time of its own matrix products
as plain CBLAS calls, attention's operations at the speed of these, and the optimizer's
bytes at the speed of a copy.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

from dotconfig import DotConfig

SCRIPTS = os.path.dirname(os.path.abspath(__file__))

# name: (defconfig, fragments, symbols, timed steps in a turn)
CASES = {
    "gpt2-124m": ("gpt2-124m", [], {"BATCH_SIZE": 4, "BLOCK_SIZE": 64,
                                    "GRADIENT_ACCUMULATION": 1}, 3),
    "tiny-arm3": ("tiny-ra-mla-full", ["ra-mla-arm3"], {}, 100),
}
WARMUP = {"gpt2-124m": 1, "tiny-arm3": 10}


class BenchError(Exception):
    """One line for the user."""


def output(command):
    """stdout of a command; its stderr where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise BenchError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def require_torch():
    try:
        import numpy
        import torch
    except ImportError as error:
        raise BenchError(f"{error.name} is missing; install the packages python3-torch and "
                         "python3-numpy") from None
    return f"PyTorch {torch.__version__}, NumPy {numpy.__version__}"


def build(name, objtree):
    """The case's binary; returns its object tree."""
    defconfig, fragments, symbols, _ = CASES[name]
    tree = os.path.join(objtree, name)
    os.makedirs(tree, exist_ok=True)
    extra = os.path.join(tree, "bench.config")
    with open(extra, "w", encoding="utf-8") as f:
        f.writelines(f"CONFIG_{k}={v}\n" for k, v in symbols.items())
    output([sys.executable, "scripts/kconfig.py", "--config", f"{tree}/.config", "--gen", tree,
            "defconfig", defconfig] + [f"defconfigs/{f}.config" for f in fragments] +
           ([extra] if symbols else []))
    output(["make", "-s", f"-j{os.cpu_count()}", f"O={tree}", "build"])
    with open(f"{tree}/plan.json", "w", encoding="utf-8") as f:
        f.write(output([f"{tree}/tenon", "plan", "--json"]))
    return tree


def run_tenon(name, tree, threads):
    return json.loads(output([f"{tree}/tenon", "bench", "--json", "--steps", str(CASES[name][3]),
                              "--warmup", str(WARMUP[name]), "--threads", str(threads)]))


def run_torch(name, tree, threads):
    return json.loads(output([sys.executable, f"{SCRIPTS}/bench_torch.py", f"{tree}/.config",
                              f"{tree}/plan.json", str(CASES[name][3]), str(WARMUP[name]),
                              str(threads)]))


def against_machine(cfg, tree, tenon, threads):
    """Lines: the step against its operations and the optimizer's bytes."""
    import bench_limits
    with open(f"{tree}/plan.json", encoding="utf-8") as f:
        plan = json.load(f)
    library, blas, work = bench_limits.blas_seconds(plan, threads)
    speed, micro = work / blas, cfg.i("GRADIENT_ACCUMULATION")
    blas, rest = blas * micro, (bench_limits.step_flops(plan) - work) / speed * micro
    copy = bench_limits.optimizer_seconds(tenon["elements"], threads)
    step = tenon["step"]
    return [f"  matrix products {blas * 1e3:10.2f} ms  ({library}, {speed / 1e9:.0f} GFLOP/s)",
            f"  attention       {rest * 1e3:10.2f} ms  (its operations at that speed)",
            f"  optimizer bytes {copy * 1e3:10.2f} ms  (at the speed of a copy)",
            f"  step / (products + attention + bytes) = {step / (blas + rest + copy):.2f}"]


def bench(name, args):
    """Print one case."""
    tree = build(name, args.objtree)
    cfg = DotConfig.load(f"{tree}/.config")
    ours, theirs = [], []
    for turn in range(args.rounds):
        ours.append(run_tenon(name, tree, args.threads))
        theirs.append(run_torch(name, tree, args.threads))
        print(f"{name} turn {turn + 1}: tenon {ours[-1]['step'] * 1e3:.2f} ms, "
              f"torch {theirs[-1]['step'] * 1e3:.2f} ms", flush=True)
    tenon = sorted(ours, key=lambda r: r["step"])[(len(ours) - 1) // 2]
    torch_step = statistics.median_low(r["step"] for r in theirs)
    tokens = tenon["tokens"]
    print(f"{name}: {cfg.i('BATCH_SIZE')} x {cfg.i('BLOCK_SIZE')} tokens, {args.threads} threads")
    print(f"  tenon {tokens / tenon['step']:12.0f} tok/s {tenon['step'] * 1e3:10.2f} ms  (" +
          ", ".join(f"{k} {tenon[k] * 1e3:.2f}" for k in ("forward", "backward", "update")) + ")")
    print(f"  torch {tokens / torch_step:12.0f} tok/s {torch_step * 1e3:10.2f} ms")
    print(f"  tenon / torch = {torch_step / tenon['step']:.2f}")
    print("\n".join(against_machine(cfg, tree, tenon, args.threads)), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objtree", default="build/bench", help="binaries are built below it")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each program")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    args = parser.parse_args()
    try:
        unknown = set(args.cases) - set(CASES)
        if unknown:
            raise BenchError(f"unknown case {min(unknown)}; there are {', '.join(CASES)}")
        print(f"{require_torch()}: eager, float32")
        for name in args.cases or CASES:
            bench(name, args)
    except (BenchError, OSError) as error:
        print(f"tenon: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
