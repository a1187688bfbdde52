#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Documentation/adding-a-mixer.md: its listings, added to a copy of the tree, make a mixer
that builds in every precision there is and passes what every mixer is tested for."""
import json
import os
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402

PAGE = os.path.join(t.SRC, "Documentation/adding-a-mixer.md")
SCRATCH = os.path.join(os.path.dirname(t.SCRATCH), "adding")
# ```LANGUAGE file=PATH or append=PATH, the text, ```
LISTING = re.compile(r"^```\w+ (file|append)=(\S+)\n(.*?)^```$", re.M | re.S)
NAME, DEFCONFIG, LAYERS = "average", "tiny-average", 3


def run(*cmd):
    """A finished process in the copy; both outputs together."""
    return subprocess.run(cmd, cwd=f"{SCRATCH}/tree", stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)


def copy_tree():
    """The tracked files as they are now, without their history."""
    shutil.rmtree(SCRATCH, ignore_errors=True)
    files = subprocess.run(["git", "ls-files", "-z"], cwd=t.SRC, check=True,
                           stdout=subprocess.PIPE, text=True).stdout
    for name in files.split("\0"):
        if os.path.isfile(os.path.join(t.SRC, name)):
            os.makedirs(os.path.dirname(f"{SCRATCH}/tree/{name}"), exist_ok=True)
            shutil.copy2(os.path.join(t.SRC, name), f"{SCRATCH}/tree/{name}")


def add_listings():
    """The page's files into the copy; their names."""
    found = []
    with open(PAGE, encoding="utf-8") as f:
        text = f.read()
    for how, name, listing in LISTING.findall(text):
        path = f"{SCRATCH}/tree/{name}"
        if os.path.exists(path) != (how == "append"):
            t.ok(False, f"{name}: {how}=, but the file {'exists' if how == 'file' else 'does not'}")
        with open(path, "a", encoding="utf-8") as f:
            f.write(listing)
        found.append(name)
    return found


def build(*fragments):
    """Configure and build in the copy; the object tree, or what failed."""
    obj = f"{SCRATCH}/{'-'.join(('obj', *fragments))}"
    os.makedirs(obj, exist_ok=True)
    for cmd in ([t.PYTHON, "scripts/kconfig.py", "--config", f"{obj}/.config", "--gen", obj,
                 "defconfig", DEFCONFIG, *(f"defconfigs/{f}.config" for f in fragments)],
                ["make", "-s", f"O={obj}", "EXTRA_CFLAGS=-Og -g0", "build", "check-programs",
                 "PROGRAMS=test_mixer test_model"]):
        done = run(*cmd)
        if done.returncode:
            return obj, f"{' '.join(cmd)}\n{done.stdout}"
    return obj, ""


def test_programs(obj, what):
    """The programs pass, and the first of them has seen the mixer."""
    for name, seen in (("test_mixer", f"{NAME}: "), ("test_model", "")):
        done = run(f"{obj}/tests/{name}")
        t.ok(done.returncode == 0 and seen in done.stdout, f"{name} passes in {what}", done.stdout)


def test_plan(obj):
    """Layers differ in tensors, as the option says."""
    subs = [s for s in json.loads(run(f"{obj}/tenon", "plan", "--json").stdout)["sublayers"]
            if s["mixer"] == NAME]
    biased = [s["layer"] for s in subs
              if s["prefix"] + "proj.bias" in [x["name"] for x in s["tensors"]]]
    t.ok(biased == list(range(LAYERS))[-2:], "the last two layers have a bias", biased)


def main():
    copy_tree()
    names = add_listings()
    t.ok(len(names) == 5, "the page has five listings", names)
    for fragments, what in ((["real-double"], "double"), ([], "float")):
        obj, failed = build(*fragments)
        if t.ok(not failed, f"it builds in {what}", failed):
            test_programs(obj, what)
            test_plan(obj)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
