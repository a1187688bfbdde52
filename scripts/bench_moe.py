#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Time of a training step with experts against a dense model of the active size.

    bench_moe.py [--objtree DIR] [--rounds N] [--threads N]

Builds both for the cpu and runs them in turns, so that what else the machine does falls on
both. Prints the ratio of each round and their median, of whole steps and without the update
(which goes over the parameters of all experts).
"""
import argparse
import json
import os
import statistics
import subprocess

SRC = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EXPERTS, CHOSEN, WIDTH = 8, 2, 768
SHAPE = {
    "ARCH_CPU": "y", "N_LAYER": 2, "N_HEAD": 8, "N_EMBD": 512, "BLOCK_SIZE": 512,
    "BATCH_SIZE": 4, "GRADIENT_ACCUMULATION": 1,
}
MODELS = {
    "dense": {"INTERMEDIATE_SIZE": CHOSEN * WIDTH},
    "moe": {"INTERMEDIATE_SIZE": WIDTH, "BLOCK": '"mha moe"', "MLP_SWIGLU": "n", "MLP_MOE": "y",
            "NUM_EXPERTS": EXPERTS, "EXPERTS_PER_TOK": CHOSEN},
}


def build(objtree, name):
    """Path of the binary."""
    tree = os.path.join(objtree, name)
    os.makedirs(tree, exist_ok=True)
    fragment = os.path.join(tree, f"{name}.config")
    with open(fragment, "w", encoding="utf-8") as f:
        f.writelines(f"CONFIG_{k}={v}\n" for k, v in {**SHAPE, **MODELS[name]}.items())
    subprocess.run(["make", "-s", f"O={tree}", "tiny-llama_defconfig", fragment, "build"],
                   cwd=SRC, check=True)
    return os.path.join(tree, "tenon")


def seconds(binary, threads):
    """(whole step, without the update)"""
    said = json.loads(subprocess.run(
        [binary, "bench", "--json", "--steps", "5", "--threads", str(threads)], check=True,
        stdout=subprocess.PIPE).stdout)
    return said["step"], said["forward"] + said["backward"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objtree", default=os.path.join(SRC, "build/bench-moe"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    binaries = {name: build(args.objtree, name) for name in MODELS}
    ratios = []
    for number in range(args.rounds):
        took = {name: seconds(path, args.threads) for name, path in binaries.items()}
        ratios.append([m / d for m, d in zip(took["moe"], took["dense"])])
        print(f"round {number + 1}: moe / dense {ratios[-1][0]:.3f} of a step "
              f"({took['moe'][0] * 1e3:.0f} ms, {took['dense'][0] * 1e3:.0f} ms), "
              f"{ratios[-1][1]:.3f} without the update", flush=True)
    whole, inner = (statistics.median(column) for column in zip(*ratios))
    print(f"median: {whole:.3f} of a step, {inner:.3f} without the update; {EXPERTS} experts of "
          f"{WIDTH}, {CHOSEN} a token, against a SwiGLU of {CHOSEN * WIDTH}")


if __name__ == "__main__":
    main()
