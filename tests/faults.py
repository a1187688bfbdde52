# SPDX-License-Identifier: MIT
"""What the tests of bad input share: commands, and proof that they changed nothing."""
import hashlib
import json
import os
import shutil
import subprocess

import training as t

# For programs that are asked only to refuse.
MAKE = ["make", "-s", "EXTRA_CFLAGS=-Og -g0"]
ENV = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
ENV.update(OMP_NUM_THREADS="1", TENON_PYTHON=t.PYTHON, LC_ALL="C")


def run(*command, **kw):
    kw.setdefault("stdout", subprocess.PIPE)
    return subprocess.run([str(word) for word in command], cwd=t.SRC, env=ENV, text=True, errors="backslashreplace",
                          stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=300, **kw)


def snapshot(top):
    """path -> what is there, for everything below a folder."""
    found = {}
    for base, folders, names in os.walk(top):
        for name in folders + names:
            path = os.path.join(base, name)
            if os.path.islink(path):
                found[path] = os.readlink(path)
            elif os.path.isfile(path):
                found[path] = hashlib.sha256(t.read(path)).hexdigest()
            else:
                found[path] = "folder"
    return found


def said(result):
    """stderr without the lines in which make says that it stopped."""
    return [x for x in result.stderr.splitlines() if not x.startswith("make")]


def refused(name, top, command, *words, **kw):
    """One line on stderr that has the words, status 2, nothing below top changed."""
    before = snapshot(top)
    result = run(*command, **kw)
    after, lines = snapshot(top), said(result)
    changed = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    t.ok(result.returncode == 2 and len(lines) == 1 and not changed and
         lines[0].startswith(("tenon: ", "error: ")) and
         all(str(word) in lines[0] for word in words), name,
         f"{' '.join(map(str, command))}\nwanted: {words}\nchanged: {changed}\n{t.said(result)}")


def place(path, data):
    """Put a file there, a folder of files (a dict), or nothing (None)."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.remove(path)
    if isinstance(data, dict):
        os.mkdir(path)
        for name, content in data.items():
            t.write(content, path, name)
    elif data is not None:
        t.write(data, path)
    return path


def flip(data):
    """One bit in the middle."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1:]


def forge(folder, machine=None, drop=(), **symbols):
    """A checkpoint as a binary with other symbols, or another machine, would have written it."""
    manifest = json.loads(t.read(folder, "manifest.json"))
    lines = manifest["config"].splitlines()
    for name, value in symbols.items():
        lines = [f"CONFIG_{name}={value}" if x.startswith(f"CONFIG_{name}=") else x for x in lines]
    manifest["config"] = "\n".join(lines) + "\n"
    manifest["machine"] = machine or manifest["machine"]
    for name in drop:
        del manifest[name]
    del manifest["manifest_sha256"]
    text = json.dumps(manifest, indent=1, sort_keys=True)
    manifest["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    t.write(json.dumps(manifest).encode(), folder, "manifest.json")


def damage(folder, name, harm):
    t.write(harm(t.read(folder, name)), folder, name)
