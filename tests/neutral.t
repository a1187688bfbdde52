#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The core knows no mechanism and no number format: a GPT-2 build depends on no symbol and
links no kernel of a family that it does not use, what is outside arch/ compiles with
parameters and activations that are structs, and lib/ and its tests know no symbol at all."""
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t            # noqa: E402
from faults import run          # noqa: E402

SYMBOL = re.compile(r"include/config/\w+")
KERNEL_SYMBOL = re.compile(r"(?:ARCH|REAL|BLAS|CPU)_")
OUT_OF_MEMORY = ("device.c",)      # says which symbols to lower
FAMILY = re.compile(r"include/config/RA_MLA_\w+")
# Kernels that ra_mla and recip alone select.
FOREIGN = re.compile(r"\bk_(?:route|couple|head_gate|causal_mean|sequence_mean|stats)\w*")
SCRATCH = os.path.join(os.path.dirname(t.SCRATCH), "neutral")


def make(name, defconfig, *goals):
    """Path of an object tree, and what make said where it failed."""
    tree = os.path.join(SCRATCH, name)
    done = run("make", "-s", f"O={tree}", f"defconfig-{defconfig}", *goals)
    return tree, t.said(done) if done.returncode else ""


def dependencies(tree):
    """path below the tree -> text of every .d file."""
    return {os.path.relpath(os.path.join(base, name), tree): t.read(base, name).decode()
            for base, _, names in os.walk(tree) for name in names if name.endswith(".d")}


def tests_of(variable):
    """What tests/Makefile has in a variable."""
    return run("make", "-s", "-f", "tests/Makefile", "--eval", f"print:;@echo $({variable})",
               "print").stdout.split()


def test_gpt2():
    plain = tests_of("plain-test-y")
    tree, error = make("gpt2", "gpt2-124m", "build", "check-programs", f"PROGRAMS={' '.join(plain)}",
                       "EXTRA_CFLAGS=-Og -g0")
    t.ok(not error, "gpt2-124m builds", error)
    found = dependencies(tree)
    users = {path: sorted(set(FAMILY.findall(text))) for path, text in found.items()
             if FAMILY.search(text)}
    t.ok(len(found) > 40 and not users, "none of its objects depends on an RA_MLA symbol", users)
    # lib/ikconfig.c is .config itself
    users = {path: SYMBOL.findall(text) for path, text in found.items()
             if path.startswith(("lib/", "tests/")) and path != "lib/ikconfig.d"}
    t.ok(set(users) > {f"tests/{name}.d" for name in plain} and not any(users.values()),
         "neither lib/ nor a test that runs under one configuration alone names a symbol", users)
    names = run("nm", f"{tree}/tenon").stdout
    foreign = FOREIGN.findall(names)
    t.ok("k_attn_fwd" in names and not foreign, "it links no kernel of another family", foreign)


def test_kernels():
    """What make check runs once for each arch and precision, and what that tests."""
    names, used = [f"tests/{name}.c" for name in tests_of("kernel-test-y")], {}
    cpu = [f"arch/cpu/{name}" for name in os.listdir(os.path.join(t.SRC, "arch/cpu"))
           if name.endswith(".c") and name not in OUT_OF_MEMORY]
    for name in names + cpu:
        files = run("gcc", "-MM", "-Iinclude", f"-I{SCRATCH}/gpt2/include", "-include",
                    "include/kconfig.h", name).stdout.replace("\\\n", " ")
        used[name] = {symbol for path in files.split()[1:]
                      if not path.startswith(SCRATCH) and path != "include/kconfig.h"
                      for symbol in re.findall(r"\bCONFIG_(\w+)", t.read(t.SRC, path).decode())}
    foreign = {name: sorted(x for x in symbols if not KERNEL_SYMBOL.match(x))
               for name, symbols in used.items()}
    t.ok(len(names) > 15 and len(cpu) > 30 and all(used[x] for x in names) and not any(foreign.values()),
         "kernels and their tests name symbols of the arch and of the precision alone", foreign)


def test_opaque():
    """No arithmetic on act_t or param_t outside arch/."""
    for defconfig in ("tiny-gpt2", "tiny-ra-mla-full"):
        _, error = make("opaque", defconfig, "objects", "EXTRA_CFLAGS=-Og -g0 -DCONFIG_REAL_BF16=1")
        t.ok(not error, f"what is outside arch/ compiles with opaque numbers: {defconfig}", error)


def main():
    test_gpt2()
    test_kernels()
    test_opaque()
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
