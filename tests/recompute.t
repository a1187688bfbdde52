#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""RECOMPUTE changes memory and nothing else: the rows of a whole run, its weights, and a run
that goes on with another choice. (test_model compares every gradient and statistic of every
combination of modes; plan.t measures the memory.)"""
import json
import os
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402

STEPS = 14      # two checkpoints, and more than one evaluation
KINDS = ("activations", "block")


def finished(out):
    """What a run came to: its rows, and the digest of its weights."""
    return t.metrics(out), json.loads(t.read(out, "result.json"))["weights_sha256"]


def planned(binary):
    return json.loads(t.tenon(binary, "plan", "--json").stdout)


def main():
    none = t.build("small")
    binaries = {kind: t.build(kind) for kind in KINDS}
    with t.folder() as tmp:
        whole = f"{tmp}/none"
        t.train(none, whole, "--steps", STEPS)
        want = finished(whole)
        plan = planned(none)
        arenas = [plan["recompute_arena"][kind] for kind in ("none", *KINDS)]
        t.ok(arenas == sorted(arenas, reverse=True) and len(set(arenas)) == 3,
             f"each way takes less than the one before: {arenas}")
        for kind, binary in binaries.items():
            other, own = f"{tmp}/{kind}", planned(binary)
            t.ok(own["recompute"] == kind and own["train"]["arena"] == arenas[1 + KINDS.index(kind)]
                 and own["flops_token"] == plan["flops_token"],
                 f"{kind}: the plan of the binary is what the other one said, its FLOPs the model's")
            run = t.train(binary, other, "--steps", STEPS)
            t.ok(not run.returncode and finished(other) == want,
                 f"{kind}: the same rows and weights as with none", t.said(run))
            shutil.copytree(whole, f"{other}-on", symlinks=True)
            shutil.rmtree(os.path.join(f"{other}-on", t.steps(whole)[-1]))
            run = t.train(binary, f"{other}-on", "--steps", STEPS)
            t.ok("resume   from step" in run.stdout and finished(f"{other}-on") == want,
                 f"{kind}: goes on from a checkpoint made with none", t.said(run))
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
