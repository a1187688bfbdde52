#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""One line about a configuration: parameters, memory and cache, by its own binary.

    chosen.py BINARY COMMAND...

COMMAND builds BINARY, quietly. Where it cannot, the line says what to type.
"""
import json
import os
import subprocess
import sys

MIB = 2**20


def say(text):
    print(f"  PLAN    {text}", flush=True)


def main(binary, *command):
    live = sys.stdout.isatty()
    if live:
        print("  PLAN    builds ...", end="\r", flush=True)
    # The jobs of the make that calls are shared through descriptors.
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          close_fds=False)
    if not done.returncode:
        done = subprocess.run([binary, "plan", "--json"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
    if live:
        print(end="\033[K")
    if done.returncode:
        again = " ".join(["make", *command[1:]])
        say(f"cannot be made here; see: {again} && {binary} plan")
        return
    plan = json.loads(done.stdout)
    constant = f" and {plan['cache_const']:,} of a sequence" if plan["cache_const"] else ""
    say(f"{plan['params']:,} parameters, {plan['train']['arena'] / MIB:,.1f} MiB to train, "
        f"cache {plan['cache_token']:,} bytes of a token{constant}; all of it: "
        f"{' '.join(['make', *(w for w in command[1:] if w.startswith('O='))])} plan")


if __name__ == "__main__":
    try:
        main(os.path.join(".", sys.argv[1]), *sys.argv[2:])
    except KeyboardInterrupt:
        sys.exit(130)
