#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Bad input as a user meets it: one line that says what and where, status 2, no file changed.

Two binaries: "shards" is a small GPT-2 on token shards; "text" reads text, its gate leaks,
and its batches fit no machine.
"""
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t    # noqa: E402

TREES = os.path.join(os.environ.get("TENON_TESTDIR", os.path.join(t.SRC, "build/check")), "input")
VOCAB, B, T, STEPS = 300, 2, 16, 6
SMALL = f"""
N_LAYER=2 N_HEAD=2 N_EMBD=16 BLOCK_SIZE={T} BATCH_SIZE={B} MAX_ITERS={STEPS} CHECKPOINT_INTERVAL=2
EVAL_SAMPLES=2
"""
SHARDS = SMALL + f'VOCAB_SIZE={VOCAB} DATA_SHARDS=y DATA_PATH="{TREES}/data" RUN_NAME="shards"'
TEXT = SMALL + f"""
BATCH_SIZE=4096 BLOCK_SIZE=131072 RA_MLA_LATENT_DIM=8 RA_MLA_RA_WINDOW=4 RA_MLA_MLP_GATE_DIM=4
RA_MLA_MLP_GATE_POOL="sequence" RA_MLA_MLP_SPARSE_K=2 DATA_TEXT=y DATA_PATH="{TREES}/data"
RA_MLA_ABLATION_MODE=n RUN_NAME="text"
"""

# For programs that are only asked to refuse; make's own lines come on top of theirs.
MAKE = ["make", "EXTRA_CFLAGS=-O0"]
ENV = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
ENV.update(OMP_NUM_THREADS="1", TENON_PYTHON=t.PYTHON, LC_ALL="C")


def run(*command, **kw):
    kw.setdefault("stdout", subprocess.PIPE)
    return subprocess.run([str(word) for word in command], cwd=t.SRC, env=ENV, text=True,
                          stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=300, **kw)


def snapshot(top):
    """path -> content of all files, links and folders below; the object trees apart."""
    found = {}
    for base, folders, names in os.walk(top):
        for name in folders + names:
            path = os.path.join(base, name)
            if os.path.islink(path):
                found[path] = os.readlink(path)
            elif os.path.isfile(path):
                found[path] = hashlib.sha256(t.read(path)).hexdigest()
            elif not base.startswith(f"{top}/tree"):
                found[path] = "folder"
    return found


class Bench:
    """The scratch folder with the two binaries, good data and a finished run."""

    def __init__(self, top):
        self.top = top
        self.trees = {name: f"{TREES}/{name}" for name in ("shards", "text")}
        self.shards, self.text = (f"{tree}/tenon" for tree in self.trees.values())
        self.run = f"{top}/run"

    def refused(self, name, command, *words, **kw):
        """A command that must end so."""
        before = snapshot(self.top)
        result = run(*command, **kw)
        lines = [x for x in result.stderr.splitlines() if not x.startswith("make")]
        after = snapshot(self.top)
        changed = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
        t.ok(result.returncode == 2 and len(lines) == 1 and not changed and
             lines[0].startswith(("tenon: ", "error: ")) and
             all(str(word) in lines[0] for word in words), name,
             f"{' '.join(map(str, command))}\nchanged: {changed}\n{t.said(result)}")

    def path(self, name, data):
        """A file, or a folder of files where data is a dict."""
        path = f"{self.top}/{name}"
        shutil.rmtree(path, ignore_errors=True)
        if isinstance(data, dict):
            os.mkdir(path)
            for file, content in data.items():
                t.write(content, path, file)
        elif data is not None:
            t.write(data, path)
        return path


def build():
    """Both binaries at a time."""
    jobs = []
    for name, base, lines in (("shards", "tiny-gpt2", SHARDS), ("text", "tiny-ra-mla-full", TEXT)):
        tree = f"{TREES}/{name}"
        os.makedirs(tree, exist_ok=True)
        t.write("".join(f"CONFIG_{x}\n" for x in lines.split()).encode(), tree, "f.config")
        jobs.append(subprocess.Popen(
            MAKE + ["-s", "-j1", f"O={tree}", f"defconfig-{base}", f"{tree}/f.config", "build"],
            cwd=t.SRC, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for job in jobs:
        out = job.communicate()[0]
        if job.returncode:
            print("Bail out!", " ".join(job.args), "failed")
            sys.exit(out)


# ---- configuration ----------------------------------------------------------

# fragment -> words of the line; {f} is its place
LINES = {
    "an unknown symbol": ("# a comment\nCONFIG_N_LAYERS=3", "{f}:2:", "CONFIG_N_LAYER?"),
    "a typing error": ("N_LAYER=3", "{f}:1:", "CONFIG_NAME=value"),
    "a value out of range": ("CONFIG_SEED=1\nCONFIG_BATCH_SIZE=0", "{f}:2:", "1..4096"),
    "a value that is no number": ("CONFIG_BATCH_SIZE=many", "{f}:1:", "whole number"),
    "an unmet dependency": ("CONFIG_LR_DECAY_STEPS=5", "{f}:1:", "CONFIG_LR_WSD=y"),
    "heads that do not divide": ("CONFIG_SEED=1\nCONFIG_N_HEAD=5", "{f}:2:", "N_EMBD=64", "4 and 8"),
    "a mixer that does not exist": ('CONFIG_BLOCK="mha mpl"', "{f}:1:", "did you mean mlp?"),
    "cuda": ("CONFIG_ARCH_CUDA=y", "{f}:1:", "CONFIG_ARCH_CPU=y"),
}


def test_config(bench):
    """As a fragment beside a defconfig, then on a .config, then as a hand edit of it."""
    tree, fragment = f"{bench.top}/tree", f"{bench.top}/f.config"
    make = MAKE + [f"O={tree}"]
    for name, (text, *words) in LINES.items():
        t.write(f"{text}\n".encode(), fragment)
        bench.refused(f"with a defconfig: {name}", make + ["defconfig-tiny-gpt2", fragment],
                      *(w.format(f=fragment) for w in words))
    run(*make, "defconfig-tiny-gpt2")
    good = t.read(tree, ".config")
    for name, (text, *words) in LINES.items():
        t.write(f"{text}\n".encode(), fragment)
        bench.refused(f"a fragment: {name}", make + [fragment],
                      *(w.format(f=fragment) for w in words))
    for name, (text, *words) in LINES.items():
        t.write(good + f"{text}\n".encode(), tree, ".config")
        lines = len(good.splitlines())
        words = [w.replace("{f}:2", "{f}:%d" % (lines + 2)).replace("{f}:1", "{f}:%d" % (lines + 1))
                 .format(f=f"{tree}/.config") for w in words]
        goal = ("build", "olddefconfig", "all")[len(name) % 3]
        bench.refused(f"a hand edit, make {goal}: {name}", make + [goal], *words)
    t.write(b"CONFIG_SEDE=1\nCONFIG_N_HEAD=x\n", fragment)
    result = run(*make, "defconfig-tiny-gpt2", fragment)
    found = [x for x in result.stderr.splitlines() if not x.startswith("make")]
    t.ok([x.split(" CONFIG_")[0] for x in found] ==
         [f"error: {fragment}:{n}:" for n in (1, 2)], "several findings: a line for each",
         t.said(result))
    t.write(b"", bench.top, "file")
    for where in (f"{bench.top}/file/tree", "/proc/tree"):
        bench.refused(f"a .config that cannot be written: {where}",
                      MAKE + [f"O={where}", "defconfig-tiny-gpt2"], where)
    shutil.rmtree(tree)


# ---- data -------------------------------------------------------------------

def u16(tokens):
    return b"".join(x.to_bytes(2, "little") for x in tokens)


def shard(tokens, magic=20240520, version=1):
    head = b"".join(x.to_bytes(4, "little") for x in (magic, version, len(tokens)))
    return head.ljust(1024, b"\0") + u16(tokens)


RAMP = [i % VOCAB for i in range(700)]
GOOD = {"train_0.bin": shard(RAMP), "val_0.bin": shard(RAMP[:100])}
BAD_TOKEN = [1] * T + [VOCAB] + [1] * 23    # the one that every window holds

# data -> words; found before anything is compiled, and by the binary
SHARD_FAULTS = {
    "a missing folder": (None, "data"),
    "an empty folder": ({}, "data", ".bin"),
    "no validation shard": ({"train_0.bin": GOOD["train_0.bin"]}, "val"),
    "a name of no split": ({**GOOD, "other.bin": shard(RAMP)}, "other.bin", "train"),
    "an empty shard": ({**GOOD, "val_0.bin": b""}, "val_0.bin"),
    "half a header": ({**GOOD, "val_0.bin": bytes(500)}, "val_0.bin"),
    "a wrong magic": ({**GOOD, "val_0.bin": shard(RAMP, magic=7)}, "val_0.bin", "magic 7"),
    "a wrong version": ({**GOOD, "val_0.bin": shard(RAMP, version=2)}, "val_0.bin", "version 2"),
    "a shard cut short": ({**GOOD, "val_0.bin": shard(RAMP)[:-1]}, "val_0.bin", "2423 bytes"),
    "a lengthened shard": ({**GOOD, "val_0.bin": shard(RAMP) + b"\0\0"}, "val_0.bin", "2426 bytes"),
    "a shard without tokens": ({**GOOD, "val_0.bin": shard([])}, "val_0.bin"),
}
NANOGPT = {"train.bin": u16(RAMP), "val.bin": u16(RAMP[:100])}
NANOGPT_FAULTS = {
    "a missing folder": (None, "data/train.bin"),
    "one file": ({"train.bin": NANOGPT["train.bin"]}, "data/val.bin"),
    "an empty file": ({**NANOGPT, "val.bin": b""}, "data/val.bin", "empty"),
    "half a token": ({**NANOGPT, "val.bin": b"123"}, "data/val.bin", "3 bytes"),
}
# only the binary reads tokens
TOKEN_FAULTS = {
    "a token beyond the vocabulary": ({**GOOD, "train_0.bin": shard(BAD_TOKEN)}, "train_0.bin",
                                      f"token {VOCAB} at position {T}", "VOCAB_SIZE"),
    "fewer tokens than a batch": ({**GOOD, "val_0.bin": shard(RAMP[:B * T])}, "validation",
                                  f"{B * T} tokens", "BATCH_SIZE"),
}
TEXT_FAULTS = {
    "a missing file": (None, "data", "DATA_PATH"),
    "an empty file": (b"", "data", "empty"),
    "an empty folder": ({}, "data", "no file"),
}
BYTE_FAULTS = {
    "a folder of empty files": ({"a.txt": b""}, "data", "empty"),
    "a damaged .gz": (b"\x1f\x8b\x08\0\0\0\0\0\0\3\x4b\x4c", "data", "gzip"),
    "too little text": (b"a few words", "data", "11 bytes", "BATCH_SIZE"),
}


def test_data(bench):
    kinds = (("shards", "", SHARD_FAULTS, True), ("shards", "nanogpt:", NANOGPT_FAULTS, True),
             ("shards", "", TOKEN_FAULTS, False), ("text", "", TEXT_FAULTS, True),
             ("text", "", BYTE_FAULTS, False))
    for kind, prefix, faults, early in kinds:
        tree = bench.trees[kind]
        for name, (data, *words) in faults.items():
            path = prefix + bench.path("data", data)
            if early:
                bench.refused(f"{prefix or kind} before the build: {name}",
                              [t.PYTHON, "scripts/preflight.py", "--config", f"{tree}/.config",
                               "--data", path, "--out", f"{bench.top}/new"], *words)
            out = f"{bench.top}/new"
            command = [f"{tree}/tenon", "train", "--data", path, "--out", out]
            if name == "a token beyond the vocabulary":
                os.mkdir(out)       # read at the first step, when the folder is there
                before = os.listdir(out)
                result = run(*command)
                t.ok(t.one_line(result, *words) and not t.steps(out), f"{kind}: {name}",
                     t.said(result) + str(before))
                shutil.rmtree(out)
            else:
                bench.refused(f"{prefix or kind}: {name}", command, *words)
    for kind, data in (("shards", {}), ("text", b"")):
        shutil.rmtree(f"{TREES}/data", ignore_errors=True)
        bench.refused(f"make, {kind}: missing data",
                      MAKE + [f"O={bench.trees[kind]}", f"OUT={bench.top}/new"],
                      f"{TREES}/data: no such file", "make demo")
