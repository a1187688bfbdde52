#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Altered configurations through the strict merge: refused in words, or taken and written back.

Lines of the defconfigs and fragments, mixed, altered and cut into one to three files, are merged
as `make defconfig-NAME FRAGMENT.config` merges them. Nothing may be raised but ConfigError. What
is taken, written as .config or defconfig and read again is the same configuration.

    tests/fuzz/merge.py DIR [--runs N] [--seed S]     what fails is left in DIR
"""
import argparse
import os
import random
import sys
import traceback

SRC = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(SRC, "scripts"))
import kconfig                                      # noqa: E402
from kconf import rules                             # noqa: E402
from kconf.config import Config                     # noqa: E402
from kconf.declare import ConfigError               # noqa: E402

NUMBERS = ("0", "-1", "1", "2", "7", "64", "65536", "2147483647", "2147483648", "-0", "007",
           "999999999999999999", "1" * 40)
REALS = ("0.0", "-0.0", "1e-5", "1e400", "nan", "inf", ".5", "5.", "1_0", "0x1p3", "1e-400")
TEXTS = ("", "mha mlp", "ra_mla recip", "mla moe", "x" * 300, "0,1", "a\\\"b", "$(shell,ls)", "`ls`",
         "\u00e9\u2028", "a#b", "..", "/", "mha  mlp", "plain.config", "a b.config")
BYTES = (b"\0", b"\xff", b"\r", b"\xef\xbb\xbf", b"\"", b"\\", b"=", b"#", b" ", b"\x0b", b"\xc2\x85")


def corpus():
    """Lines of every file of defconfigs/."""
    lines = []
    for name in sorted(os.listdir(kconfig.FOLDER)):
        with open(os.path.join(kconfig.FOLDER, name), encoding="utf-8") as file:
            lines.append(file.read().splitlines())
    return lines


def value(draw):
    """Any right side of a line."""
    text = draw.choice(draw.choice((NUMBERS, REALS, TEXTS, ("y", "n", "m", "Y"))))
    return f'"{text}"' if draw.random() < 0.5 else text


def alter(draw, lines, names):
    """One alteration of a list of lines, in place."""
    at = draw.randrange(len(lines) + 1)
    name = draw.choice(names)
    kind = draw.randrange(7)
    if kind == 0:
        lines.insert(at, f"CONFIG_{name}={value(draw)}")
    elif kind == 1:
        lines.insert(at, draw.choice((f"# CONFIG_{name} is not set", f"CONFIG_{name}=y",
                                      f"CONFIG_{name}", "# base: tiny-gpt2", "# base: ../x y")))
    elif not lines:
        return
    elif kind == 2:
        del lines[at - 1]
    elif kind == 3:
        lines.append(lines[at - 1])
    elif kind == 4:
        left = lines[at - 1].partition("=")[0]
        lines[at - 1] = f"{left}={value(draw)}"
    elif kind == 5:
        draw.shuffle(lines)
    else:
        line = lines[at - 1]
        cut = draw.randrange(len(line) + 1)
        lines[at - 1] = line[:cut] + draw.choice(BYTES).decode("latin-1") + \
            line[cut + draw.randrange(2):]


def made(draw, files, names):
    """The files of one case, as bytes."""
    lines = list(draw.choice(files))
    if draw.random() < 0.3:
        lines += draw.choice(files)
    for _ in range(draw.randrange(7)):
        alter(draw, lines, names)
    cuts = sorted(draw.randrange(len(lines) + 1) for _ in range(draw.randrange(3)))
    parts = [lines[a:b] for a, b in zip([0, *cuts], [*cuts, len(lines)])]
    return ["\n".join(part).encode("latin-1", "replace") if draw.random() < 0.1 else
            "\n".join(part).encode() for part in parts]


def load(conf, paths, bases=0):
    conf.load(paths, bases)
    rules.check(conf)


def try_one(conf, folder, parts):
    """Whether the case is taken; raises what is a finding."""
    paths = [os.path.join(folder, f"{i}.config") for i in range(len(parts))]
    for path, data in zip(paths, parts):
        with open(path, "wb") as file:
            file.write(data)
    try:
        bases = kconfig.with_bases(paths[0])[:-1]
        load(conf, [*bases, *paths], len(bases))
    except ConfigError as error:
        if not all(error.messages) or any("\n" in message for message in error.messages):
            raise AssertionError(f"no line each: {error.messages}") from None
        return False
    text, again = conf.text(), os.path.join(folder, "again")
    for written in (text, conf.minimal_text()):
        with open(again, "w", encoding="utf-8") as file:
            file.write(written)
        load(conf, [again])
        if conf.text() != text:
            changed = sorted({*text.splitlines()} ^ {*conf.text().splitlines()})
            raise AssertionError(f"read again, it is another: {changed}")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("dir")
    parser.add_argument("--runs", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    folder = os.path.abspath(args.dir)
    os.makedirs(folder, exist_ok=True)
    os.chdir(SRC)
    conf, files = Config(), corpus()
    names = [s.name for s in conf.unique_defined_syms] + list(conf.decl.aliases) + ["NO_SUCH"]
    taken = failed = 0
    for seed in range(args.seed, args.seed + args.runs):
        parts = made(random.Random(seed), files, names)
        try:
            taken += try_one(conf, folder, parts)
        except Exception:       # whatever it is, it is a finding
            failed += 1
            where = os.path.join(folder, f"failed-{seed}")
            print(f"merge: --seed {seed}, files in {where}-*.config:\n{traceback.format_exc()}",
                  flush=True)
            for i, data in enumerate(parts):
                with open(f"{where}-{i}.config", "wb") as file:
                    file.write(data)
    print(f"merge: {args.runs} merged, {taken} taken, {failed} failed")
    return 1 if failed or not taken else 0


if __name__ == "__main__":
    sys.exit(main())
