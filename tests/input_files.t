#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every file that the program reads, replaced by every kind of thing that is none, cut, altered
or missing: one line that names it, status 2, nothing waited for, nothing changed. And names of
files that hold anything."""
import json
import os
import shutil
import socket
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t                                            # noqa: E402
from faults import flip, place, refused, run, snapshot         # noqa: E402

T, B, VOCAB = 16, 2, 300


def little(size, numbers):
    return b"".join(x.to_bytes(size, "little") for x in numbers)


def shard(tokens, magic=20240520, version=1, count=None):
    count = len(tokens) if count is None else count
    return little(4, (magic, version, count)).ljust(1024, b"\0") + little(2, tokens)


RAMP = [i % VOCAB for i in range(700)]


# ---- what is no file ---------------------------------------------------------

def make_socket(path):
    """Bound under a short name: a path may be too long for one."""
    here = os.getcwd()
    os.chdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.path.basename(path))
    os.chdir(here)


# kind -> (how it is made, words of the message)
KINDS = {
    "nothing": (lambda path: None, "No such file"),
    "a link to nothing": (lambda path: os.symlink("none", path), "No such file"),
    "a link to itself": (lambda path: os.symlink(os.path.basename(path), path), "symbolic links"),
    "a folder": (os.mkdir, "is a folder"),
    "a pipe": (os.mkfifo, "is a pipe"),
    "a socket": (make_socket, "is a socket"),
    "/dev/null": (lambda path: os.symlink("/dev/null", path), "is a device"),
    "/dev/zero": (lambda path: os.symlink("/dev/zero", path), "is a device"),
    "/dev/tty": (lambda path: os.symlink("/dev/tty", path), "is a device"),
}


def test_kinds(top, binary, path, name, command, but=()):
    """The file @path, found by @command, as everything that is no file."""
    kept = f"{top}.kept"
    os.rename(path, kept)
    for kind, (make, word) in KINDS.items():
        if kind in but:
            continue
        make(path)
        result = run(binary, *command)
        t.ok(t.one_line(result, path, word), f"{name} is {kind}", t.said(result))
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        elif os.path.lexists(path):
            os.remove(path)
    os.rename(kept, path)


# ---- bytes of a file ---------------------------------------------------------

# Each makes another file out of a good one of any length.
FORMS = {
    "empty": lambda d: b"",
    "its first byte": lambda d: d[:1],
    "its first half": lambda d: d[:len(d) // 2],
    "all but its last byte": lambda d: d[:-1],
    "without its first byte": lambda d: d[1:],
    "altered in its first bit": lambda d: bytes([d[0] ^ 1]) + d[1:],
    "altered in the middle": flip,
    "altered in its last bit": lambda d: d[:-1] + bytes([d[-1] ^ 1]),
    "with a byte behind it": lambda d: d + b"\n",
    "zeros": lambda d: bytes(len(d)),
    "twice": lambda d: d + d,
    "noise": lambda d: bytes(i * 167 % 251 for i in range(len(d))),
}


def test_checkpoint(top, small, whole):
    """Every file of a checkpoint, in every form, for every verb that reads one."""
    tokens = place(f"{top}/tokens", little(4, [7] * (B * (T + 1))))
    step = shutil.copytree(f"{whole}/ckpt-000006", f"{top}/step")
    verbs = {
        "eval": ["--checkpoint", step], "generate": ["--checkpoint", step, "--prompt", "x"],
        "dump": ["--checkpoint", step, "--tokens", tokens, "--out", f"{top}/new"],
    }
    for name in sorted(os.listdir(step)):
        good = t.read(step, name)
        for verb, flags in verbs.items():
            # all three check a checkpoint in one place: one of them tries everything
            forms = FORMS if verb == "eval" else dict(list(FORMS.items())[::4])
            for form, change in forms.items():
                if (name, form) == ("manifest.json", "with a byte behind it"):
                    continue    # a line feed, which means nothing in JSON
                t.write(change(good), step, name)
                refused(f"{verb}: {name} {form}", top, [small, verb, *flags], f"{step}/{name}")
            t.write(good, step, name)
            if verb != "eval" and name != "model.safetensors":
                continue
            test_kinds(top, small, f"{step}/{name}", f"{verb}: {name}", [verb, *flags],
                       () if name != "manifest.json" else ("nothing", "a link to nothing",
                                                           "a link to itself"))
    result = run(small, "eval", "--checkpoint", step)
    t.ok(result.returncode == 0, "the good files again: eval takes them", t.said(result))
    shutil.rmtree(step)


def test_damaged_run(top, small, whole):
    """All checkpoints of a run: one line, whatever is wrong with how many of them."""
    out = shutil.copytree(whole, f"{top}/run", symlinks=True)
    for name in t.steps(out):
        for file in os.listdir(f"{out}/{name}"):
            good = t.read(out, name, file)
            t.write(flip(good), out, name, file)
    for verb in (["train", "--out", out], ["eval", "--checkpoint", out]):
        refused(f"{verb[0]}: a run whose checkpoints are all damaged", out, [small, *verb],
                out, "ckpt-000006/manifest.json")
    shutil.rmtree(out)
    for kind in ("a folder", "a pipe", "a socket", "a file"):
        out = shutil.copytree(whole, f"{top}/run", symlinks=True)
        os.remove(f"{out}/best")
        (KINDS.get(kind, (lambda path: place(path, b"x"),))[0])(f"{out}/best")
        refused(f"eval: best is {kind}", out, [small, "eval", "--checkpoint", out], f"{out}/best",
                "no link")
        shutil.rmtree(out)


def test_run_files(top, small, whole):
    """What a resumed run finds instead of its log, and of the folder itself."""
    for name in ("metrics.jsonl",):
        for kind, (make, word) in KINDS.items():
            if kind in ("nothing", "a link to nothing"):
                continue
            out = shutil.copytree(whole, f"{top}/run", symlinks=True)
            os.remove(f"{out}/{name}")
            os.remove(f"{out}/result.json")
            make(f"{out}/{name}")
            result = run(small, "train", "--out", out)
            t.ok(t.one_line(result, f"{out}/{name}", word), f"train: {name} is {kind}",
                 t.said(result))
            shutil.rmtree(out)
    for kind, (make, _) in KINDS.items():
        path = f"{top}/thing"
        if kind in ("nothing", "a folder"):
            continue
        make(path)
        for verb, flag in (("train", "--out"), ("eval", "--checkpoint"), ("plan", "--out")):
            result = run(small, verb, flag, path, *["--check"] * (verb == "plan"))
            t.ok(t.one_line(result, path), f"{verb}: {flag} is {kind}", t.said(result))
        os.remove(path)


def test_log(top, small, whole):
    """A log that is not the checkpoint's: named in one line, kept, and the run goes on."""
    good = t.read(whole, "metrics.jsonl")
    lines = good.splitlines(True)
    forms = {name: change(good) for name, change in FORMS.items()}
    forms.update({"without its second row": b"".join(lines[:1] + lines[2:]),
                  "with a row twice": b"".join(lines[:2] + lines[1:]),
                  "with a row of nonsense": b"".join(lines[:2] + [b"{]\n"] + lines[2:]),
                  "with other figures": good.replace(b'"loss": ', b'"loss": 1'),
                  "missing": None})
    # what follows the rows of the checkpoint is cut off, as after a kill
    whole_still = ("with a byte behind it", "twice")
    for name, data in forms.items():
        out = shutil.copytree(whole, f"{top}/run", symlinks=True)
        os.remove(f"{out}/result.json")
        if data is None:
            os.remove(f"{out}/metrics.jsonl")
        else:
            t.write(data, out, "metrics.jsonl")
        result = run(small, "train", "--out", out)
        said, expected = result.stderr.splitlines(), 0 if name in whole_still else 1
        aside = [x for x in os.listdir(out) if x.startswith("metrics.jsonl.old")]
        t.ok(result.returncode == 0 and len(said) == expected and
             all(f"{out}/metrics.jsonl" in x and "the run goes on" in x for x in said) and
             (not aside if data is None or not expected else
              t.read(out, "metrics.jsonl.old-1") == data) and
             all(json.loads(x) for x in t.read(out, "metrics.jsonl").splitlines()),
             f"metrics.jsonl {name}: {'named' if expected else 'cut back'}", t.said(result))
        shutil.rmtree(out)


# ---- data --------------------------------------------------------------------

def test_shards(top, shards):
    data = f"{top}/data"
    good = {"train_0.bin": shard(RAMP), "val_0.bin": shard(RAMP[:100])}
    place(data, good)
    command = ["plan", "--check", "--data", data]
    t.ok(run(shards, *command).returncode == 0, "good shards are taken")
    for name in good:
        test_kinds(top, shards, f"{data}/{name}", f"shards: {name}", command, ("nothing",))
        for form, change in FORMS.items():
            if form == "altered in the middle" or form == "altered in its last bit":
                continue        # other tokens, which no header tells
            t.write(change(good[name]), data, name)
            refused(f"shards: {name} {form}", top, [shards, *command], f"{data}/{name}")
        t.write(good[name], data, name)
    headers = {
        "magic of another kind": {"magic": 20240801}, "magic 0": {"magic": 0},
        "magic in the other byte order": {"magic": 0x88D83401}, "version 0": {"version": 0},
        "version 2": {"version": 2}, "version 2^31": {"version": 1 << 31},
        "no tokens": {"count": 0}, "a token more": {"count": 701}, "a token less": {"count": 699},
        "2^31 tokens": {"count": 1 << 31}, "2^32 - 1 tokens": {"count": (1 << 32) - 1},
    }
    for name, fields in headers.items():
        t.write(shard(RAMP, **fields), data, "train_0.bin")
        refused(f"shards: a header with {name}", top, [shards, *command], f"{data}/train_0.bin")
    plain = {"train.bin": little(2, RAMP), "val.bin": little(2, RAMP[:100])}
    place(data, plain)
    command = ["plan", "--check", "--data", f"nanogpt:{data}"]
    for name in plain:
        test_kinds(top, shards, f"{data}/{name}", f"nanogpt: {name}", command)
        for form in ("empty", "its first byte", "all but its last byte", "with a byte behind it"):
            t.write(FORMS[form](plain[name]), data, name)
            refused(f"nanogpt: {name} {form}", top, [shards, *command], f"{data}/{name}")
        t.write(plain[name], data, name)


def test_cut_short(top, shards):
    """A shard that another program shortens under a run: one line, and the run can go on."""
    good = {"train_0.bin": shard(RAMP), "val_0.bin": shard(RAMP[:100])}
    data, out = place(f"{top}/data", good), f"{top}/cut"
    command = [shards, "train", "--data", data, "--out", out, "--threads", "1", "--steps"]
    for name, end in (("train_0.bin", 1030), ("train_0.bin", 0), ("val_0.bin", 1025)):
        with subprocess.Popen([*command, "1000000"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as job:
            # it stops where nobody reads its lines, far before its last step
            next(line for line in job.stdout if line.startswith("step "))
            os.truncate(f"{data}/{name}", end)
            lines, errors = job.communicate(timeout=120)
        t.ok(job.returncode == 2 and errors.count("\n") == 1 and
             errors.startswith(f"tenon: {data}/{name}: ") and "cut short" in errors,
             f"{name} cut to {end} bytes under a run", lines + errors)
        t.write(good[name], data, name)
    step = int(t.steps(out)[-1].split("-")[1])
    result = run(*command, step + 2, "--allow-config-change")
    t.ok(result.returncode == 0, "whole again: the run goes on",
         t.said(result))
    shutil.rmtree(out)


def test_text(top, text):
    path = place(f"{top}/text", b"a text of many words " * 100)
    test_kinds(top, text, path, "text", ["plan", "--check", "--data", path],
               ("a folder",))       # which text may be
    test_kinds(top, text, path, "prompts", ["generate", "--prompts", path])
    for flag in ("--tokens", "--targets"):
        test_kinds(top, text, path, f"dump {flag}",
                   ["dump", "--init", 1, flag, path, "--out", f"{top}/new"])


# ---- names -------------------------------------------------------------------

NAMES = {
    "a line feed": b"a\nb", "an escape sequence": b"a\x1b[31mb", "a carriage return": b"a\rb",
    "a bell": b"a\x07", "DEL": b"a\x7f", "C1 controls": b"a\xc2\x9b2Jb", "no UTF-8": b"a\xff\xfeb",
    "half a character": b"a\xe2\x82", "an overlong slash": b"a\xc0\xafb", "a surrogate":
    b"a\xed\xa0\x80b", "beyond Unicode": b"a\xf4\x90\x80\x80", "percent signs": b"a%s%n%d",
    "a quote": b"a\"'`$b", "a backslash": b"a\\n", "a leading dash": b"./--out",
}


def test_names(top, small, text, shards):
    for what, name in NAMES.items():
        path = os.fsdecode(os.path.join(os.fsencode(top), name))
        for command in ([text, "train", "--data"], [shards, "train", "--data"],
                        [small, "eval", "--checkpoint"], [text, "generate", "--prompts"],
                        [small, "dump", "--init", 1, "--out", f"{top}/new", "--tokens"]):
            result = run(*command, path)
            line = result.stderr.removesuffix("\n")
            t.ok(t.one_line(result) and line.isprintable() and line.isascii(),
                 f"{command[1]} {command[-1]}: a missing file with {what} in its name",
                 f"{result.stderr!r}")
        place(path, b"a text of many words " * 200)
        result = run(text, "train", "--data", path, "--out", path + ".run")
        ok = result.returncode == 0 and not result.stderr
        ok = ok and all(x.isprintable() for x in result.stdout.splitlines())
        ok = ok and json.loads(t.read(path + ".run", "result.json"))["data"]
        t.ok(ok, f"train on a file, into a folder, with {what} in its name", t.said(result))
        shutil.rmtree(path + ".run", ignore_errors=True)
        os.remove(path)


def main():
    small, shards, text = (t.build(n) for n in ("small", "shards", "text"))
    with t.folder() as top:
        whole = f"{top}.whole"
        t.train(small, whole, "--steps", 6)
        before = snapshot(whole)
        place(f"{top}/d", {})
        for number, test in enumerate((test_checkpoint, test_damaged_run)):
            test(place(f"{top}/d{number}", {}), small, whole)
        # a run goes on with the steps that its checkpoint says
        shutil.rmtree(whole)
        t.train(small, whole)
        before = snapshot(whole)
        test_run_files(place(f"{top}/d", {}), small, whole)
        test_log(place(f"{top}/d", {}), small, whole)
        t.ok(snapshot(whole) == before, "the run that was copied is as it was")
        shutil.rmtree(whole)
        test_shards(place(f"{top}/d", {}), shards)
        test_cut_short(place(f"{top}/d", {}), shards)
        test_text(place(f"{top}/d", {}), text)
        test_names(place(f"{top}/d", {}), small, text, shards)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
