#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""make bench on a GPU: Tenon against PyTorch and against the machine, by phase and kernel.

    bench_cuda.py [--objtree DIR] [--rounds N] [--together] [CASE...]
    bench_cuda.py --build DIR [CASE...]     only builds, for another machine
    bench_cuda.py --run DIR [CASE...]       there: what --build left, no compiler needed

As scripts/bench.py: training or decode steps on random tokens, ours and theirs in turns.
Theirs: compiled bf16, and the same with PyTorch's deterministic algorithms, as ours always
are. Then the phases of a step, its share of the roofs (a large product and a copy, measured
in the same call, and the datasheet), and with ncu every kernel of one step.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys

import bench
import bench_kernels
import bench_limits
from bench import BenchError, output

SCRIPTS = os.path.dirname(os.path.abspath(__file__))
WAYS = {"bf16": "compiled bf16", "deterministic": "the same, deterministic",
        "products": "the same, without SDPA"}
STEP = {"GRADIENT_ACCUMULATION": 1, "ARCH_CUDA": "y"}
DECODE = {"BATCH_SIZE": 64}
# name: defconfig, symbols, (timed steps of a turn, warmup), (sequences, tokens)
CASES = {
    "gpt2-124m": ("gpt2-124m", {}, (20, 5), None),
    "gpt2-124m-64": ("gpt2-124m", {"BATCH_SIZE": 64}, (10, 3), None),
    "arm0": ("gpt2-ra-mla-arm0", {}, (20, 5), None),
    "arm3": ("gpt2-ra-mla-arm3", {}, (20, 5), None),
    "decode-1": ("gpt2-124m", DECODE, (200, 20), (1, 1023)),
    "decode-8": ("gpt2-124m", DECODE, (200, 20), (8, 1023)),
    "decode-64": ("gpt2-124m", DECODE, (200, 20), (64, 1023)),
}
DATASHEET = {"H200": 989e12, "H100 80GB HBM3": 989e12, "A100": 312e12}    # dense bf16


def binary_name(case):
    defconfig, symbols = CASES[case][:2]
    return "-".join([defconfig, *map(str, symbols.values())])


def build(case, objtree, folder):
    """A case's tenon and .config to a folder of their own below @folder, which is returned."""
    defconfig, symbols = CASES[case][:2]
    tree, to = os.path.join(objtree, "cuda"), os.path.join(folder, binary_name(case))
    os.makedirs(tree, exist_ok=True)
    os.makedirs(to, exist_ok=True)
    with open(f"{tree}/bench.config", "w", encoding="utf-8") as f:
        f.writelines(f"CONFIG_{k}={v}\n" for k, v in {**STEP, **symbols}.items())
    hopper = [] if on_gpu() else ["arch-hopper.config"]
    output(["make", "-s", f"O={tree}", f"defconfig-{defconfig}", f"{tree}/bench.config", *hopper,
            "build"])
    for name in ("tenon", ".config"):
        shutil.copy2(f"{tree}/{name}", to)
    return to


def on_gpu():
    return not subprocess.run(["sh", f"{SCRIPTS}/../tests/gpu.sh"], stdout=subprocess.PIPE,
                              text=True, check=True).stdout


class Tenon(bench.Turns):
    """One case of ours."""

    def __init__(self, case, tree):
        (steps, warmup), decode = CASES[case][2:]
        self.tree = tree
        with open(f"{tree}/plan.json", "w", encoding="utf-8") as f:
            f.write(output([f"{tree}/tenon", "plan", "--json"]))
        with open(f"{tree}/plan.json", encoding="utf-8") as f:
            self.plan = json.load(f)
        super().__init__([f"{tree}/tenon", "bench", "--json",
                          *bench.flags(steps, warmup, decode)])

    @property
    def memory(self):
        return self.middle().get("memory", 0)


def start(case, tenon, python):
    """{way: Torch}, all of them starting."""
    ways = ("bf16", "products" if CASES[case][3] else "deterministic")
    return {way: bench.Torch(way, "cuda", CASES[case][2:], tenon.tree, python,
                             len(os.sched_getaffinity(0))) for way in ways}


def ready(case, peers):
    """Those that came up; a line for each of the others."""
    there = {}
    for way, peer in peers.items():
        try:
            peer.read()
            there[way] = peer
        except BenchError as error:
            print(f"{case}: torch, {WAYS[way]}: not here: {error}", flush=True)
    return there


# ---- what is printed -------------------------------------------------------------


def share(work, seconds, roof):
    return f"{100 * work / seconds / roof:3.0f} %"


def phases(tenon, roofs):
    """Lines: the phases of a step."""
    r = tenon.middle()
    flops = {way: sum(part[way]["flops"] for part in [tenon.plan["stack"],
                                                      *tenon.plan["sublayers"]])
             for way in ("forward", "backward")}
    moved = 4 * bench_limits.OPTIM_FLOATS * r["elements"]
    for name in ("forward", "backward"):
        if r[name]:
            yield (f"  {name:10} {r[name] * 1e3:9.3f} ms {flops[name] / r[name] / 1e12:8.0f} "
                   f"TFLOP/s {share(flops[name], r[name], roofs['matmul'])} of the large product")
    if r["update"]:
        yield (f"  {'update':10} {r['update'] * 1e3:9.3f} ms {moved / r['update'] / 1e9:8.0f} "
               f"GB/s    {share(moved, r['update'], roofs['copy'])} of the copy")


def against_machine(tenon, roofs, products):
    """Lines: a whole step."""
    r = tenon.middle()
    if "cache_bytes" in r:
        moved = r["weight_bytes"] + r["cache_bytes"]
        return [f"  weights and caches once: {moved / r['step'] / 1e9:.0f} GB/s, "
                f"{share(moved, r['step'], roofs['copy'])} of the copy"]
    work = bench_limits.step_flops(tenon.plan)
    sheet = next((v for k, v in DATASHEET.items() if k in roofs["name"]), None)
    lines = [f"  {work / r['step'] / 1e12:.0f} TFLOP/s: MFU "
             f"{share(work, r['step'], roofs['matmul'])} of the large product" +
             (f", {share(work, r['step'], sheet)} of the datasheet" if sheet else "")]
    inside = sum(2.0 * m * n * k for m, n, k in bench_limits.step_products(tenon.plan))
    rest = (work - inside) * products / inside
    moved = 4 * bench_limits.OPTIM_FLOATS * r["elements"] / roofs["copy"]
    lines.append(f"  products by torch.matmul {products * 1e3:.2f} ms + attention's operations at "
                 f"that speed {rest * 1e3:.2f} + optimizer's bytes {moved * 1e3:.2f}: "
                 f"step / that = {r['step'] / (products + rest + moved):.2f}")
    return lines


def report(case, tenon, peers, roofs, products):
    decode = CASES[case][3]
    tokens = decode[0] if decode else tenon.middle()["tokens"]
    print(f"{case}: {len(tenon.turns)} turns of each, medians")
    for name, x in [("tenon", tenon)] + [(f"torch {WAYS[k]}", x) for k, x in peers.items()]:
        memory = f" {x.memory / 2 ** 20:8.0f} MiB" if x.memory and not decode else ""
        print(f"  {name:32} {tokens / x.seconds():10.0f} tok/s {x.seconds() * 1e3:9.3f} ms{memory}")
    for way, x in peers.items():
        pairs = zip((t["step"] for t in tenon.turns), x.turns)
        print(f"  tenon is {statistics.median(b / a for a, b in pairs):.2f} times as fast as "
              f"torch {WAYS[way]}")
    lines = [] if decode else phases(tenon, roofs)
    print("\n".join([*lines, *against_machine(tenon, roofs, products)]), flush=True)


def print_roofs(roofs):
    b, h, t, d = roofs["shape"]
    print(f"{roofs['name']}: a large product {roofs['matmul'] / 1e12:.0f} TFLOP/s, a copy "
          f"{roofs['copy'] / 1e9:.0f} GB/s")
    print("  a copy in a graph, read and written: " +
          ", ".join(f"{size >> 20} MiB {size / t / 1e9:.0f}" for size, t in roofs["copies"]) +
          " GB/s")
    for name, (forward, backward) in roofs["attention"].items():
        work = b * h * t * t * d
        print(f"  scaled_dot_product_attention, {name}, B {b}, H {h}, T {t}, D {d}, causal: "
              f"{forward * 1e6:.1f} / {backward * 1e6:.1f} us, "
              f"{2 * work / forward / 1e12:.0f} / {5 * work / backward / 1e12:.0f} TFLOP/s",
              flush=True)


# ---- the course of it ------------------------------------------------------------


def turns(case, tenon, peers, rounds):
    for _ in range(rounds):
        tenon.turn()
        for peer in peers.values():
            peer.turn()
    for peer in peers.values():
        peer.close()


def run(cases, tenons, args, python):
    """Every case; a peer gives its memory back before the next case begins."""
    roofs = json.loads(output([python, f"{SCRIPTS}/bench_roof.py"] +
                              [f"{tenons[c].tree}/plan.json" for c in cases]))
    print_roofs(roofs)
    waiting = {c: start(c, tenons[c], python) for c in cases} if args.together else {}
    there = {c: ready(c, peers) for c, peers in waiting.items()}
    for number, case in enumerate(cases):
        peers = there.get(case)
        if peers is None:
            peers = ready(case, start(case, tenons[case], python))
        turns(case, tenons[case], peers, args.rounds)
        report(case, tenons[case], peers, roofs, roofs["products"][number])
    cases = [] if args.no_kernels else [case for case in cases if not CASES[case][3]]
    sizes = bench_kernels.copies(python) if cases else []
    for case in cases:
        bench_kernels.table(case, tenons[case].tree, roofs, sizes)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objtree", default="build/bench", help="binaries are built below it")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each program")
    parser.add_argument("--together", action="store_true",
                        help="all peers get ready at once: faster, and needs the memory of all")
    parser.add_argument("--no-kernels", action="store_true", help="leave the tables by ncu away")
    parser.add_argument("--build", metavar="DIR", help="only build, for --run there")
    parser.add_argument("--run", metavar="DIR", help="what --build has left there")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    args = parser.parse_args()
    cases = args.cases or list(CASES)
    try:
        unknown = set(cases) - set(CASES)
        if unknown:
            raise BenchError(f"unknown case {min(unknown)}; there are {', '.join(CASES)}")
        if args.build:
            for case in cases:
                build(case, args.objtree, args.build)
            return 0
        python, version = bench.find_torch()
        print(f"PyTorch {version} ({python}), with fused AdamW and scaled_dot_product_attention")
        tenons = {case: Tenon(case, os.path.join(args.run, binary_name(case)) if args.run else
                              build(case, args.objtree, args.objtree)) for case in cases}
        run(cases, tenons, args, python)
    except (BenchError, OSError) as error:
        print(f"tenon: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
