#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Check data and output folder before anything is compiled.

    preflight.py --config FILE [--data PATH] [--out DIR]

What takes minutes to build must not fail on a mistyped path afterwards. Only the
form of the data is looked at here: whether files exist, are named as the source
expects and, for shards, have a whole header and tokens for a batch. Exit status 2
with one line that says what is wrong, where, and what to do.
"""
import argparse
import glob
import os
import struct
import sys
import tempfile

from dotconfig import DotConfig

SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER = 20240520, 1, 1024
SHARD_FORM = ("256 little-endian int32 (magic 20240520, version 1, token count), then uint16 "
              "tokens; file names with \"train\" or \"val\"")
NANOGPT = "nanogpt:"
NANOGPT_FORM = "a folder with train.bin and val.bin, uint16 tokens without a header"
TEXT_FORM = "UTF-8 text, a file or a folder of files, plain or .gz"
REMEDY = "set CONFIG_DATA_PATH or pass --data; `make demo` runs on the embedded corpus"


class Refusal(Exception):
    """One line for the user."""


def refuse(path, what, form):
    raise Refusal(f"{path}: {what}. Expected: {form}. {REMEDY}")


def regular_files(folder):
    """Non-empty files below a folder."""
    for base, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(base, name)
            if os.path.isfile(path) and os.path.getsize(path):
                yield path


def check_readable(path, form):
    if not os.access(path, os.R_OK):
        refuse(path, "cannot be read (permissions)", form)


def check_text(path):
    """A non-empty file, or a folder that holds one."""
    if not os.path.exists(path):
        refuse(path, "no such file or folder", TEXT_FORM)
    check_readable(path, TEXT_FORM)
    if os.path.isdir(path):
        if not next(regular_files(path), None):
            refuse(path, "the folder holds no file with content", TEXT_FORM)
    elif not os.path.getsize(path):
        refuse(path, "the file is empty", TEXT_FORM)


def shard_files(path):
    """The .bin files that a path, folder or glob names."""
    if os.path.isdir(path):
        path = os.path.join(glob.escape(path), "*.bin")
    return sorted(p for p in glob.glob(path) if os.path.isfile(p))


def check_shard_header(path):
    """Magic, version and length of one shard; its tokens."""
    check_readable(path, SHARD_FORM)
    with open(path, "rb") as f:
        head = f.read(12)
    if len(head) < 12:
        refuse(path, f"{len(head)} bytes, no header", SHARD_FORM)
    magic, version, count = struct.unpack("<iii", head)
    if magic != SHARD_MAGIC:
        refuse(path, f"magic {magic}", SHARD_FORM)
    if version != SHARD_VERSION:
        refuse(path, f"version {version}", SHARD_FORM)
    if count < 1:
        refuse(path, "its header promises no tokens", SHARD_FORM)
    size, want = os.path.getsize(path), SHARD_HEADER + 2 * count
    if size != want:
        refuse(path, f"{size} bytes, but its header promises {want}", SHARD_FORM)
    return count


def check_enough(path, split, tokens, need):
    """A split must hold one batch."""
    if tokens < need:
        raise Refusal(f"{path}: the {split} split has {tokens} tokens, one batch needs {need}: "
                      "give more data or lower CONFIG_BATCH_SIZE or CONFIG_BLOCK_SIZE")


def check_nanogpt(folder, need):
    """Both files, of whole tokens."""
    for split in ("train", "val"):
        path = os.path.join(folder, split + ".bin")
        if not os.path.isfile(path):
            refuse(path, "no such file", NANOGPT_FORM)
        check_readable(path, NANOGPT_FORM)
        size = os.path.getsize(path)
        if not size or size % 2:
            refuse(path, f"{size} bytes, no whole number of tokens" if size else
                   "the file is empty", NANOGPT_FORM)
        check_enough(path, split, size // 2, need)


def check_shards(path, need):
    """Shards of both splits."""
    files = shard_files(path)
    if not files:
        what = "no .bin file there" if os.path.isdir(path) else "no such file or folder"
        refuse(path, what, SHARD_FORM)
    for p in files:
        if ("train" in os.path.basename(p)) == ("val" in os.path.basename(p)):
            refuse(p, "its name has both \"train\" and \"val\", or neither", SHARD_FORM)
    for split in ("train", "val"):
        if not any(split in os.path.basename(p) for p in files):
            refuse(path, f"no shard with \"{split}\" in its name", SHARD_FORM)
    counts = {p: check_shard_header(p) for p in files}
    for split in ("train", "val"):
        check_enough(path, split, sum(n for p, n in counts.items() if split in os.path.basename(p)),
                     need)


def check_out(out):
    """A folder that can be written, or can be made."""
    folder = os.path.abspath(out)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise Refusal(f"{out}: {folder} is a file, not a folder; "
                      "choose another --out (make OUT=DIR)")
    try:
        with tempfile.TemporaryFile(dir=folder) as f:
            f.write(b"\0" * 4096)
            f.flush()
    except OSError as error:
        raise Refusal(f"{out}: cannot write in {folder} ({error.strerror}); "
                      "make room or choose another --out (make OUT=DIR)") from None


def check_config(cfg, data, out):
    path = data or cfg.s("DATA_PATH")
    need = cfg.i("BATCH_SIZE") * cfg.i("BLOCK_SIZE") + 1
    if cfg.y("DATA_TEXT"):
        check_text(path)
    elif path.startswith(NANOGPT) and cfg.y("DATA_SHARDS"):
        check_nanogpt(path[len(NANOGPT):], need)
    elif cfg.y("DATA_SHARDS"):
        check_shards(path, need)
    check_out(out or os.path.join("runs", cfg.s("RUN_NAME")))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="the .config")
    parser.add_argument("--data", help="instead of CONFIG_DATA_PATH")
    parser.add_argument("--out", help="instead of runs/CONFIG_RUN_NAME")
    args = parser.parse_args()
    try:
        check_config(DotConfig.load(args.config), args.data, args.out)
    except (Refusal, OSError) as error:
        print(f"tenon: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
