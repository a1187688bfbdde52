# SPDX-License-Identifier: MIT
"""Write the embedded corpus: the committed text files, one behind the other.

corpus.py FILE, from the top of the tree. The files are those of HEAD, sorted by
the bytes of their paths, with their committed contents, so that every checkout
of a commit gives the same bytes:

    git ls-tree -r --name-only HEAD | LC_ALL=C sort | ...

Links, submodules and files that are not UTF-8 text are left out. Where git has
no commit to read (a release archive), the source files of the tree are taken
in the same order, and a note says so.
"""

import os
import subprocess
import sys

# What a walk takes in: everything that is source, nothing that was built or run.
FOLDERS = (".ci", "Documentation", "arch", "ckpt", "data", "defconfigs", "dist",
           "include", "infer", "lib", "model", "scripts", "tests", "tools", "train")
FILES = (".clang-format", ".gitignore", "Kconfig", "LICENSE", "MAINTAINERS",
         "Makefile", "README.md")
REGULAR = (b"100644", b"100755")


class NoCommit(Exception):
    """git cannot give the files; the text says why."""


def git(*args, stdin=None):
    """The output of a git command."""
    try:
        done = subprocess.run(("git",) + args, input=stdin, capture_output=True,
                              check=False)
    except OSError as error:
        raise NoCommit(f"git: {error.strerror}") from None
    if done.returncode:
        message = done.stderr.decode(errors="replace")
        if "dubious ownership" in message or "safe.directory" in message:
            raise NoCommit("git does not trust the owner of this folder; to allow it: "
                           f"git config --global --add safe.directory {os.getcwd()}")
        raise NoCommit("no commit here")
    return done.stdout


def committed_files():
    """(path, contents) of the regular files of HEAD, by path bytes."""
    if git("rev-parse", "--show-prefix").strip():
        raise NoCommit("this folder is not the top of its git checkout")
    blobs = []
    for entry in git("ls-tree", "-r", "-z", "HEAD").split(b"\0")[:-1]:
        meta, path = entry.split(b"\t", 1)
        mode, _, blob = meta.split()
        if mode in REGULAR:
            blobs.append((path, blob))
    blobs.sort()
    out = git("cat-file", "--batch", stdin=b"".join(b + b"\n" for _, b in blobs))
    pos = 0
    for path, _ in blobs:
        end = out.index(b"\n", pos)
        size = int(out[pos:end].split()[2])
        yield path, out[end + 1:end + 1 + size]
        pos = end + 1 + size + 1


def walked_files():
    """(path, contents) of the source files of the tree, by path bytes."""
    paths = [os.fsencode(name) for name in FILES if os.path.isfile(name)]
    for top in FOLDERS:
        for folder, folders, names in os.walk(os.fsencode(top)):
            folders[:] = [name for name in folders if name != b"__pycache__"]
            paths += (os.path.join(folder, name) for name in names)
    for path in sorted(paths):
        if not os.path.islink(path):
            with open(path, "rb") as file:
                yield path, file.read()


def is_text(data):
    """Whether the bytes are UTF-8 without a 0 byte."""
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def main():
    """Write the corpus under a temporary name, then rename it."""
    try:
        files = list(committed_files())
    except NoCommit as reason:
        print(f"note: the corpus is the source files as they stand: {reason}",
              file=sys.stderr)
        files = list(walked_files())
    corpus = b"".join(data for _, data in files if is_text(data))
    if not corpus:
        sys.exit("corpus.py: no text file found; run make from the top of the tree")
    target = sys.argv[1]
    with open(target + ".tmp", "wb") as file:
        file.write(corpus)
    os.replace(target + ".tmp", target)


if __name__ == "__main__":
    main()
