#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every flag of every verb with every kind of bad value: one line that names the flag, status
2. Verbs and flags are what --help lists, so that a new one is tried as well."""
import re
import sys
import os

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import training as t                        # noqa: E402
from faults import run                      # noqa: E402

HUGE = "9" * 20
# what stands where a number should, by kind; out of range: no flag takes less than 0
BAD = {
    "N": ("", "x", "5x", "1.5", "1e3", "0x10", " 5", "5 ", "5\n", "\t5", "5\x1b[31m", "\uff15",
          "+", "-", HUGE, "-" + HUGE, "-1", "-9223372036854775808", "9223372036854775807"),
    "X": ("", "x", "1,5", "0.5x", " 0.5", "0.5\n", "nan", "inf", "-inf", "1e999", "-1", "1e300"),
    "": ("", "1", "no"),
}
# values that some flag takes after all
TAKEN = {("generate", "seed"): {"9223372036854775807"}, ("dump", "init"): {"9223372036854775807"}}


def flags_of(binary, verb):
    """(name, kind) of each flag, as --help shows them."""
    text = run(binary, verb, "--help").stdout
    return [(name, kind or "") for name, kind in
            re.findall(r"^  --([a-z-]+)(?: (TEXT|N|X))?  ", text, re.M) if name != "help"]


def refused(name, binary, words, *expected):
    """One line on stderr without control bytes, status 2, nothing on stdout."""
    result = run(binary, *words)
    line = result.stderr.removesuffix("\n")
    t.ok(result.returncode == 2 and not result.stdout and line.startswith("tenon: ") and
         line.isprintable() and all(word in line for word in expected), name, t.said(result))


def test_values(binary, verb, flags):
    for name, kind in flags:
        for value in BAD.get(kind, ()):
            if value in TAKEN.get((verb, name), ()):
                continue
            refused(f"{verb}: --{name}={value!r}", binary, [verb, f"--{name}={value}"],
                    f"{verb}: --{name}")
        if kind:
            refused(f"{verb}: --{name} at the end", binary, [verb, f"--{name}"],
                    f"{verb}: --{name} wants a value")
            refused(f"{verb}: --{name} before another flag", binary, [verb, f"--{name}", "--help"],
                    f"{verb}: --{name} wants a value")


def test_spelling(binary, verb, flags):
    names = {name for name, _ in flags}
    for name in sorted(names):
        for wrong in (name[:-1], name + "x", name[0] + name):
            if wrong not in names:
                refused(f"{verb}: --{wrong}", binary, [verb, f"--{wrong}"], "did you mean --")
        refused(f"{verb}: -{name}", binary, [verb, f"-{name}"], f"did you mean --{name}?",
                "two dashes")
    result = run(binary, verb, "--qqqqqqqqqqqq")
    t.ok(t.one_line(result, "unknown flag --qqqqqqqqqqqq") and "mean" not in result.stderr,
         f"{verb}: nothing is suggested where nothing is near", t.said(result))
    refused(f"{verb}: a stray word", binary, [verb, "now\x07"], verb, "'now\\x07'")


def test_verbs(binary, verbs):
    for verb in verbs:
        for wrong in (verb[:-1], verb + "x", verb[1] + verb[0] + verb[2:]):
            refused(f"{wrong} for {verb}", binary, [wrong], "unknown verb", "did you mean")
    for word in ("", "zzz", "--hlep", "\x1b[2J", "a\nb", "tr\udcffain"):
        refused(f"the verb {word!r}", binary, [word], "unknown verb")
    result = run(binary, "--version")
    t.ok(result.returncode == 0 and result.stdout.startswith("tenon git "), "--version",
         t.said(result))


def test_full_device(binary, verbs):
    for words in (["--help"], ["--version"], *([verb, "--help"] for verb in verbs)):
        with open("/dev/full", "w") as full:
            result = run(binary, *words, stdout=full)
        t.ok(t.one_line(result, "stdout", "No space left"), f"{' '.join(words)} into a full device",
             f"{result.returncode} {result.stderr}")


def test_made(binary, top):
    """Who typed make is told its settings."""
    for words, expected in (
            (["train", "--threads=two"], "THREADS=N"), (["train", "--out="], "OUT=DIR"),
            (["plan", "--check", "--out=/proc/run"], "OUT=DIR"),
            (["train", "--out=/proc/run"], "OUT=DIR")):
        for made in (False, True):
            result = run(binary, *["--called-by-make"] * made, *words)
            t.ok(t.one_line(result) and (expected in result.stderr) == made and
                 ("--" in result.stderr) != made, f"{' '.join(words)}: in the words of "
                 f"{'make' if made else 'the program'}", t.said(result))
    out = f"{top}/run"
    t.train(binary, out, "--steps", 2)
    for flags, expected in ((["--steps", "3"], ("ALLOW_CONFIG_CHANGE=1", "RESTART=1")),):
        result = run(binary, "--called-by-make", "train", "--out", out, *flags)
        t.ok(t.one_line(result, *expected) and "--" not in result.stderr,
             "a changed run: the settings of make", t.said(result))


def main():
    binary = t.build("small")
    verbs = re.findall(r"^  ([a-z]+) ", run(binary, "--help").stdout, re.M)
    with t.folder() as top:
        for verb in verbs:
            flags = flags_of(binary, verb)
            t.ok(flags, f"{verb}: --help lists flags")
            test_values(binary, verb, flags)
            test_spelling(binary, verb, flags)
        test_verbs(binary, verbs)
        test_full_device(binary, verbs)
        test_made(binary, top)
    return t.done()


if __name__ == "__main__":
    sys.exit(main())
