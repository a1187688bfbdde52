#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random configurations, each of which must do what any configuration does.

It builds; gradients agree with finite differences, no output looks at later tokens and decode
agrees with forward (test_mixer, test_model); it trains, and goes on from a checkpoint with
other threads to the same bits. Of one that fails the symbols that matter are sought: delta
debugging between the smallest configuration and this one (Zeller and Hildebrandt, IEEE TSE
28(2), 2002).

    tests/randconfig.py [--count N] [--seed S] [--dir DIR]      seeds S to S + N - 1
"""
import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t                                # noqa: E402

sys.path.insert(0, os.path.join(t.SRC, "scripts"))
from kconf import block, random_config, rules, stack    # noqa: E402
from kconf.config import Config                     # noqa: E402
from kconf.declare import ConfigError               # noqa: E402

PROGRAMS = ("test_mixer", "test_model")
# What a run needs that is interrupted: two checkpoints before the last of few steps.
RUN = {"MAX_ITERS": "5", "CHECKPOINT_INTERVAL": "2", "CHECKPOINT_KEEP": "2"}
# Where the search for what matters begins.
SMALLEST = {"GPT2_MODEL_CUSTOM": "y", "ARCH_CPU": "y", "N_LAYER": "1", "N_HEAD": "1", "N_EMBD": "4",
            "BLOCK_SIZE": "7", "BATCH_SIZE": "1", "VOCAB_SIZE": "256", "EVAL_SAMPLES": "1",
            "GRADIENT_ACCUMULATION": "1", "BLOCK": "mha mlp"}
# A compiler or a run that hangs is a failure, too.
LIMIT_S = 900


# A configuration as items (symbol, value), of BLOCK and BLOCK_ALT one for each word.

def items_of(conf):
    """What a configuration sets otherwise than the smallest one, or than its model would."""
    mixers = {b.symbol for b in conf.decl.blocks.values()}
    found = []
    for sym in conf.unique_defined_syms:
        if sym.name in stack.NAMES:
            found += [(sym.name, word) for word in sym.str_value.split()]
        elif sym.choice:
            if sym.choice.visibility and sym.choice.selection is sym:
                found.append((sym.name, "y"))
        elif sym.visibility and sym.name not in {*mixers, *RUN, "RUN_NAME"}:
            found.append((sym.name, sym.str_value))
    put(conf, [])   # what is not open there has no value to compare with
    return [(name, value) for name, value in found if name in (*stack.NAMES, *block.FOLLOW) or
            not conf.syms[name].visibility or conf.value(name) != value]


def put(conf, items):
    """Make a configuration that of items; '' or what the rules say to it."""
    words = {name: [w for n, w in items if n == name] for name in stack.NAMES}
    if not words["BLOCK"]:
        words["BLOCK"] = SMALLEST["BLOCK"].split()
    conf.unset_values()
    values = {**SMALLEST, **dict(items), **RUN}
    values.update((name, " ".join(w)) for name, w in words.items())
    if not words["BLOCK_ALT"]:
        values["BLOCK_ALT_LAYERS"] = ""
    for one in conf.decl.blocks.values():
        values[one.symbol] = "ny"[any(one.name in w for w in words.values())]
    for name, value in values.items():
        conf.syms[name].set_value(value)
    return "\n".join(rules.violations(conf))


def minimal(items, fails):
    """A set of items that fails although none of its parts tried does, by ddmin."""
    parts = 2
    while len(items) > 1:
        size = -(-len(items) // parts)
        cut = [items[i:i + size] for i in range(0, len(items), size)]
        rest = [[x for other in cut if other is not one for x in other] for one in cut]
        smaller = next((some for some in cut + rest if len(some) < len(items) and fails(some)),
                       None)
        if smaller is not None:
            parts = 2 if smaller in cut else max(parts - 1, 2)
            items = smaller
        elif size == 1:
            break
        else:
            parts = min(2 * parts, len(items))
    return [] if fails([]) else items


# One configuration, in an object tree that the next one uses again.

def run(*command):
    """Output of a command that failed, '' of one that did not."""
    try:
        done = subprocess.run(command, cwd=t.SRC, stdout=subprocess.PIPE, timeout=LIMIT_S,
                              stderr=subprocess.STDOUT, text=True, errors="backslashreplace")
    except subprocess.TimeoutExpired:
        return f"{' '.join(command)}: not finished after {LIMIT_S} s\n"
    lines = [x for x in done.stdout.splitlines() if not x.startswith("ok ")]
    return "\n".join([*lines, f"exit {done.returncode}: {' '.join(command)}"]) \
        if done.returncode else ""


def builds(obj):
    return run("make", "-s", f"O={obj}", "EXTRA_CFLAGS=-Og -g0", f"PROGRAMS={' '.join(PROGRAMS)}",
               "check-programs", "build")


def trains(obj):
    shutil.rmtree(f"{obj}/whole", ignore_errors=True)
    return run(f"{obj}/tenon", "train", "--out", f"{obj}/whole", "--threads", "1")


def resumes(obj):
    """From the last checkpoint but one, on more threads."""
    shutil.rmtree(f"{obj}/again", ignore_errors=True)
    shutil.copytree(f"{obj}/whole", f"{obj}/again", symlinks=True)
    shutil.rmtree(f"{obj}/again/{t.steps(f'{obj}/again')[-1]}")
    return run(f"{obj}/tenon", "train", "--out", f"{obj}/again", "--threads", "2") or \
        t.same_run(f"{obj}/whole", f"{obj}/again")


STAGES = {
    "builds": builds,
    **{name: lambda obj, name=name: run(f"{obj}/tests/{name}") for name in PROGRAMS},
    "trains": trains,
    "resumes": resumes,
}


def failure(conf, obj):
    """(stage, output) of what failed; ('', '') where nothing did."""
    os.makedirs(obj, exist_ok=True)
    with open(f"{obj}/.config", "w", encoding="utf-8") as file:
        file.write(conf.text())
    for name, stage in STAGES.items():
        output = stage(obj)
        if output:
            return name, output
    return "", ""


def explain(conf, items, fails):
    """Lines about a configuration that fails: the symbols that matter."""
    least = minimal(items, lambda some: not put(conf, some) and fails())
    put(conf, least)
    return [f"least that fails, on the smallest configuration ({len(least)} of {len(items)}):",
            *(f"  CONFIG_{name}={value}" for name, value in least)] + \
        (["  (nothing: the smallest configuration fails, too)"] if not least else [])


def check(seed, folder, tree):
    """TAP name and details of one seed; no details where it passed."""
    conf, obj = Config(), os.path.join(folder, str(tree))
    name = f"randconfig {seed}: builds, gradients, causality, decode, trains, resumes"
    try:
        random_config.randomise(conf, seed)
    except ConfigError as error:
        return name, [str(error)]
    items = items_of(conf)
    objection = put(conf, items)
    if objection:
        return name, objection.splitlines()
    stage, output = failure(conf, obj)
    if not stage:
        return name, []
    kept = os.path.join(folder, f"{seed}.config")
    shutil.copy(f"{obj}/.config", kept)
    details = explain(conf, items, lambda: failure(conf, obj)[0] == stage)
    least = os.path.join(folder, f"{seed}-least.config")
    with open(least, "w", encoding="utf-8") as file:
        file.write(conf.text())
    return name, [f"SEED={seed} fails: {stage} ({kept})", *output.splitlines()[-20:], *details,
                  f"again: make randconfig-check N=1 SEED={seed}; or cp {least} DIR/.config"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", default=os.path.join(os.path.dirname(t.SCRATCH), "randconfig"))
    parser.add_argument("--trees", type=int, default=os.cpu_count(), help="at a time")
    args = parser.parse_args()
    os.chdir(t.SRC)
    free = Queue()
    for tree in range(args.trees):
        free.put(tree)

    def one(seed):
        tree = free.get()
        try:
            return check(seed, args.dir, tree)
        finally:
            free.put(tree)

    with ThreadPoolExecutor(args.trees) as pool:
        for name, details in pool.map(one, range(args.seed, args.seed + args.count)):
            t.ok(not details, name, "\n".join(details))
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
