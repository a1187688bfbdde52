#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Bad configurations as a user meets them, through make: beside a defconfig, as a fragment,
as a hand edit of .config. One line that names file and line, status 2, nothing changed."""
import os
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t                                            # noqa: E402
from faults import MAKE, place, refused, run, said              # noqa: E402

# what is wrong -> (lines, which of them is, words of the message)
LINES = {
    "an unknown symbol": ("# a comment\nCONFIG_N_LAYERS=3", 2, "did you mean CONFIG_N_LAYER?"),
    "a typing error": ("N_LAYER=3", 1, "CONFIG_NAME=value"),
    "a value out of range": ("CONFIG_SEED=1\nCONFIG_BATCH_SIZE=0", 2, "1..4096"),
    "a value that is no number": ("CONFIG_BATCH_SIZE=many", 1, "whole number"),
    "an unmet dependency": ("CONFIG_LR_DECAY_STEPS=5", 1, "CONFIG_LR_WSD=y"),
    "heads that do not divide": ("CONFIG_SEED=1\nCONFIG_N_HEAD=5", 2, "CONFIG_N_EMBD=64",
                                 "4 and 8"),
    "a mixer that does not exist": ('CONFIG_BLOCK="mha mpl"', 1, "did you mean mlp?"),
}
if shutil.which("nvcc"):
    LINES["numbers that a backend lacks"] = ("CONFIG_ARCH_CUDA=y\nCONFIG_REAL_DOUBLE=y", 2,
                                             "has no double")
else:
    LINES["a backend whose compiler is not here"] = ("CONFIG_ARCH_CUDA=y", 1,
                                                     "set CONFIG_ARCH_CPU=y")
# In a .config, which decides every switch, what depends on one that is off is only noted,
# and a backend's other numbers are findings of their own.
NOT_BY_HAND = ("an unmet dependency", "numbers that a backend lacks")
GOALS = ("build", "all", "olddefconfig")


def test_fragments(top, make):
    path = f"{top}/f.config"
    for goals in ([], ["defconfig-tiny-gpt2"]):
        for name, (text, line, *words) in LINES.items():
            place(path, f"{text}\n".encode())
            refused(f"a fragment {'beside a defconfig' if goals else 'on a .config'}: {name}", top,
                    make + goals + [path], f"error: {path}:{line}: ", *words)


def test_hand_edits(top, make):
    good = t.read(top, "tree", ".config")
    above = len(good.splitlines())
    faults = [item for item in LINES.items() if item[0] not in NOT_BY_HAND]
    for i, (name, (text, line, *words)) in enumerate(faults):
        goal = GOALS[i % len(GOALS)]
        place(f"{top}/tree/.config", good + f"{text}\n".encode())
        refused(f"a hand edit, make {goal}: {name}", f"{top}/tree/.config", make + [goal],
                f"error: {top}/tree/.config:{above + line}: ", *words)
    made = [f for _, _, files in os.walk(f"{top}/tree") for f in files]
    t.ok(made == [".config", "auto.conf"] and not t.read(top, "tree/include/config/auto.conf"),
         "make builds nothing of a bad .config", made)
    place(f"{top}/tree/.config", good)


def test_findings(top, make):
    path = place(f"{top}/f.config", b"CONFIG_SEDE=1\nCONFIG_SEED=1\nCONFIG_N_HEAD=x\n")
    result = run(*make, path)
    t.ok(result.returncode == 2 and [x.split(" CONFIG_")[0] for x in said(result)] ==
         [f"error: {path}:{line}:" for line in (1, 3)], "several findings: a line for each",
         t.said(result))


def test_files(top, make):
    for name in (f"{top}/no.config", "tiny.config"):
        refused(f"a fragment that is not there: {name}", top, make + [name], name)
    refused("a defconfig that is not there", top, make + ["defconfig-tiny-gpt"], "tiny-gpt2?")
    refused("a fragment that is no text", top, make + [place(f"{top}/f.config", b"\xff\xfe\0")],
            f"{top}/f.config: not a text file")
    place(f"{top}/file", b"")
    for where in (f"{top}/file/tree", "/proc/tree"):
        refused(f"a .config that cannot be written: {where}", top,
                MAKE + [f"O={where}", "defconfig-tiny-gpt2"], where)
    refused("randconfig with a seed that is no number", top, make + ["randconfig", "SEED=one"],
            "'one'")


def test_missing(top):
    """Whatever needs a .config says the same."""
    texts = set()
    for goal in ("all", "build", "olddefconfig", "savedefconfig"):
        result = run(*MAKE, f"O={top}/none", goal)
        texts.add("\n".join(said(result)).split(": ", 1)[1])
        t.ok(result.returncode == 2 and "make demo" in result.stderr and
             "make check" in result.stderr and "make defconfig-tiny-gpt2 " in result.stderr,
             f"no .config, make {goal}: the two commands and the defconfigs", t.said(result))
    t.ok(len(texts) == 1 and not os.path.exists(f"{top}/none"), "in the same words", texts)


def main():
    with t.folder() as top:
        make = MAKE + [f"O={top}/tree"]
        run(*make, "defconfig-tiny-gpt2")
        test_fragments(top, make)
        test_hand_edits(top, make)
        test_findings(top, make)
        test_files(top, make)
        test_missing(top)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
