#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Memory and arithmetic of the core under AddressSanitizer and UBSan, with every mixer on: what is
written beside an array changes no result that another test looks at."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import faults                   # noqa: E402
import training as t            # noqa: E402

PROGRAMS = ("test_mixer", "test_model", "test_optim", "test_step", "test_train")
KINDS = "-fsanitize=address,undefined"
TREE = os.path.join(os.path.dirname(t.SCRATCH), "sanitize")


def main():
    done = faults.run("make", "-s", f"O={TREE}", "defconfig-tiny-ra-mla-full",
                      "tests/mutants.config", "check-programs", f"PROGRAMS={' '.join(PROGRAMS)}",
                      f"EXTRA_CFLAGS=-O1 -g {KINDS} -fno-sanitize-recover=undefined",
                      f"EXTRA_LDFLAGS={KINDS}")
    t.ok(done.returncode == 0, "the programs build", t.said(done))
    # Test programs free nothing at their end.
    faults.ENV.update(ASAN_OPTIONS="detect_leaks=0")
    for name in PROGRAMS:
        done = faults.run(f"{TREE}/tests/{name}")
        t.ok(done.returncode == 0, name, done.stderr[-4000:])
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
