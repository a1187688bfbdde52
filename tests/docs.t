#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every command of every page, run in a copy of the tree.

A command is an indented line that begins like one, or a fence ```sh, which is run as a
whole. Where its comment says "minutes" or "hours" it is not run, but what it names must
exist; where it says "needs PyTorch" it is run if that is there. A synopsis is no command:
it stands in a fence ```text. Listings with file=PATH or append=PATH are written first. /tmp
is a folder of the test; of more than 99 training steps ten are run. Every page begins with tiny-gpt2 built and trained for a few steps,
as the README's reader has it.
"""
import os
import re
import shutil
import stat
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import terminal         # noqa: E402
import training as t    # noqa: E402

SCRATCH = os.path.join(os.path.dirname(t.SCRATCH), "docs")
BASE, WORK, TMP = (os.path.join(SCRATCH, name) for name in ("base", "work", "tmp"))
SECONDS = 600
COMMAND = re.compile(r"(?:[A-Z_]+=\S* )*(make|git|python3|printf|echo|mkdir|cp|sh|bash|prove|"
                     r"tensorboard|(?:\./|/\S+/)?tenon|(?:\./)?scripts/\S+|/usr/bin/\S+|/tmp/\S+|\$\(sh \S+\))"
                     r"(?: |$)")
SLOW = re.compile(r"#.*\b(minutes|hours)\b")
TORCH = re.compile(r"#.*\bneeds PyTorch\b")
STEPS = re.compile(r"--steps \d{3,}")
FILE = re.compile(r"\w+ (file|append)=(\S+)")
FEW_STEPS = """CONFIG_RUN_NAME="tiny-gpt2"
CONFIG_MAX_ITERS=8
CONFIG_WARMUP_STEPS=2
CONFIG_EVAL_INTERVAL=4
CONFIG_EVAL_SAMPLES=1
CONFIG_CHECKPOINT_INTERVAL=4
"""
ENV = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
ENV.update(EXTRA_CFLAGS="-Og -g0", TENON_PYTHON=t.PYTHON, GIT_AUTHOR_NAME="t", GIT_AUTHOR_EMAIL="t@t",
           GIT_COMMITTER_NAME="t", GIT_COMMITTER_EMAIL="t@t")


# ---- pages ------------------------------------------------------------------

def pages():
    return ["README.md"] + [f"Documentation/{name}" for name in
                            sorted(os.listdir(f"{t.SRC}/Documentation")) if name.endswith(".md")]


def blocks(text):
    """(line number, word behind the fence or '' for an indented line, text), in order."""
    fence, start, body = None, 0, []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            if fence is not None:
                yield start, fence, "\n".join(body) + "\n"
                fence = None
            else:
                fence, start, body = line[3:].strip(), number, []
        elif fence is not None:
            body.append(line)
        elif line.startswith("    "):
            yield number, "", line[4:]


def commands(text):
    """(line number, command) and (line number, (how, path, text)) of a page."""
    for number, fence, body in blocks(text):
        file = FILE.fullmatch(fence)
        if file:
            yield number, (*file.groups(), body)
        elif fence == "sh" or not fence and COMMAND.match(body):
            yield number, body


# ---- the tree ---------------------------------------------------------------

def run(command, cwd):
    return subprocess.run(["bash", "-e", "-o", "pipefail", "-c", command], cwd=cwd, env=ENV,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", timeout=SECONDS)


def make_base():
    """The tracked files as they stand, committed, built and trained for a few steps."""
    shutil.rmtree(SCRATCH, ignore_errors=True)
    os.makedirs(BASE)
    t.write(FEW_STEPS.encode(), SCRATCH, "few.config")
    done = run(f"git ls-files -z | tar c --null --ignore-failed-read -T - | tar x -C {BASE}", t.SRC)
    done = done.returncode and done or run(
        "git init -q && git add -A && git commit -q -m tree && git repack -adq && "
        f"make -s defconfig-tiny-gpt2 {SCRATCH}/few.config && make -s", BASE)
    if done.returncode:
        print("Bail out! the tree does not build")
        sys.exit(done.stdout)


def entries(folder):
    """{path: what it is, size and time}; of a folder, that it is one."""
    found = {}
    for at, folders, files in os.walk(folder):
        for path in (os.path.join(at, name) for name in folders + files):
            st = os.lstat(path)
            found[os.path.relpath(path, folder)] = None if stat.S_ISDIR(st.st_mode) else \
                (st.st_mode, st.st_size, st.st_mtime_ns)
    return found


def begin_page():
    """WORK is as BASE again: only what the page before touched is copied."""
    shutil.rmtree(TMP, ignore_errors=True)
    os.makedirs(TMP)
    want, have = entries(BASE), entries(WORK)
    kept = {path for path in want if have.get(path, 0) == want[path]}
    for path in sorted(have.keys() - kept, reverse=True):
        (os.unlink if have[path] else os.rmdir)(f"{WORK}/{path}")
    os.makedirs(WORK, exist_ok=True)
    for path in sorted(want.keys() - kept):
        if want[path]:
            shutil.copy2(f"{BASE}/{path}", f"{WORK}/{path}", follow_symlinks=False)
        else:
            os.mkdir(f"{WORK}/{path}")


# ---- tests ------------------------------------------------------------------

def has_torch():
    return not subprocess.run(["/usr/bin/python3", "-c", "import torch"], check=False,
                              stderr=subprocess.DEVNULL).returncode


def exists(command):
    """'' where the goals and scripts of a slow command are there, else what is missing."""
    with open(f"{t.SRC}/scripts/help.txt", encoding="utf-8") as f:
        known = set(f.read().split())
    for part in re.split(r"&&|;|\n", command.split("#")[0]):
        words = [w for w in part.split() if "=" not in w]
        if words and words[0] == "make":
            for goal in words[1:]:
                name = goal.removeprefix("defconfig-")
                if goal not in known and not os.path.exists(f"{t.SRC}/defconfigs/{name}"):
                    return goal
        elif words and words[0].startswith("scripts/") and \
                not os.access(f"{t.SRC}/{words[0]}", os.X_OK):
            return words[0]
    return ""


def test_command(where, command, torch):
    name = f"{where}: {command.splitlines()[0].split('  ')[0]}"
    if SLOW.search(command):
        missing = exists(command)
        t.ok(not missing, f"{name} (not run)", f"there is no {missing}")
        return
    if TORCH.search(command) and not torch:
        t.ok(True, f"{name} # SKIP PyTorch is missing")
        return
    command = STEPS.sub("--steps 10", re.sub(r"/tmp\b", TMP, command))
    if "menuconfig" in command:
        if not terminal.exists():
            t.ok(True, f"{name} # SKIP this machine has no pseudo-terminals")
            return
        status, text = terminal.drive(["bash", "-ec", command], ["q", "n"], SECONDS, WORK, ENV)
    else:
        done = run(command, WORK)
        status, text = done.returncode, done.stdout
    t.ok(status == 0, name, f"status {status}\n{text}")


def test_page(page, torch):
    with open(f"{t.SRC}/{page}", encoding="utf-8") as f:
        found = list(commands(f.read()))
    if not found:
        return
    begin_page()
    for number, item in found:
        if isinstance(item, str):
            test_command(f"{page}:{number}", item, torch)
        else:
            how, path, text = item
            with open(f"{WORK}/{path}", "a" if how == "append" else "w", encoding="utf-8") as f:
                f.write(text)


def test_extraction():
    """A page that this test cannot read would pass."""
    text = "\n".join(("A `make nothing`.", "", "    make build   # x", "    y = m x", "```sh",
                      "printf a", "printf b", "```", "```text", "tenon train [--out DIR]", "```",
                      "```c file=a/b.c", "int x;", "```"))
    t.ok(list(commands(text)) == [(3, "make build   # x"), (5, "printf a\nprintf b\n"),
                                  (12, ("file", "a/b.c", "int x;\n"))],
         "commands_are_found", list(commands(text)))
    t.ok(exists("make demo  # minutes") == "" and exists("make nothing") == "nothing" and
         exists("scripts/none.py --x") == "scripts/none.py", "what_a_slow_one_names_is_looked_up")


def main():
    only = sys.argv[1:]
    test_extraction()
    make_base()
    torch = has_torch()
    for page in only or pages():
        test_page(page, torch)
    shutil.rmtree(SCRATCH, ignore_errors=True)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
