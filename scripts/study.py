# SPDX-License-Identifier: MIT
"""What a study compares: its arms, and what their runs left.

A run is a folder written by `tenon train`: metrics.jsonl has one row per training
step, result.json the outcome.
"""
import json
import os
import re

from kconf import fragment


class StudyError(Exception):
    """One line for the user, with the exit status."""

    def __init__(self, message, status=2):
        super().__init__(message)
        self.status = status


FRAGMENT = "ra-mla-arm{}"    # what an arm of the published study puts on the configuration
BASE = "base"                # the arm that has nothing on top
GPT2 = "ra-mla-gpt2"         # the arm that stands beside them for scale
TWIN = {4: 2, 5: 3}          # an arm that repeats another one's build and seed
UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")    # what no folder of an arm is named with
TAIL = 1 << 14               # bytes at the end of metrics.jsonl that hold its last rows


class Entry:
    """
    A line of the study: a published arm by its number, or fragments and symbols by a name.
    Fragments are files that go on top of the configuration, then symbols, {name: value}.
    """

    def __init__(self, name, fragments, symbols=None):
        self.fragments, self.symbols = fragments, symbols or {}
        self.name = name
        self.twin = TWIN.get(name)              # the number that it repeats
        self.title = f"arm {name}"
        self.folder = f"arm{name}" if self.published else UNSAFE.sub("-", name)

    @classmethod
    def numbered(cls, number):
        return cls(number, [fragment.find(FRAGMENT.format(TWIN.get(number, number)))])

    @property
    def published(self):
        return isinstance(self.name, int)

    @property
    def build(self):
        """The folder of the binary, which a repeat shares with its twin."""
        return self.folder if self.twin is None else f"arm{self.twin}"

    @property
    def label(self):
        """What the fragments' first lines, "# words" or "# Arm N: words", say; the symbols."""
        words = [f"{name} {value}".replace('"', "") for name, value in self.symbols.items()]
        return ", ".join([self.first_line(path) for path in self.fragments] + words) or \
            "the base as it is"

    def first_line(self, path):
        with open(path, encoding="utf-8") as f:
            line = f.readline().strip()
        words = line.strip("# ") if line.startswith("# ") else fragment.name(path)
        return re.sub(r"^Arm \w+: ", "", words)


def parse_numbers(text):
    """[number] from "0,1,5"; ValueError where it is no such list."""
    numbers = [int(word) for word in text.split(",")]
    if len(set(numbers)) != len(numbers) or \
            not all(fragment.find(FRAGMENT.format(TWIN.get(n, n))) for n in numbers) or \
            not all(TWIN.get(n, n) in numbers for n in numbers):
        raise ValueError(text)
    return sorted(numbers)


def entries(cfg):
    """[Entry]: GPT-2, the published arms, then those of ABLATION_ARMS."""
    found, words = [], cfg.s("ABLATION_ARMS").split()
    reason = fragment.problem(words)
    if reason:
        raise StudyError(f"CONFIG_ABLATION_ARMS: {reason}")
    own = [Entry(fragment.name(word), [fragment.find(word)]) for word in words]
    if cfg.y("RA_MLA_ABLATION_MODE"):
        try:
            found = [Entry.numbered(n) for n in parse_numbers(cfg.s("RA_MLA_ABLATION_STEPS"))]
        except ValueError:
            raise StudyError("CONFIG_RA_MLA_ABLATION_STEPS must be a comma list of numbers that "
                             f"have an arm, defconfigs/{FRAGMENT.format('N')}.config, 4 and 5 with "
                             "the 2 and 3 that they repeat") from None
        if "gpt2" not in [entry.name for entry in own]:
            found.insert(0, Entry("gpt2", [fragment.find(GPT2)]))
    return found + own


def reference(names):
    """What changes are measured from: arm 0, the base, without published arms the first; or None."""
    for name in (0, BASE):
        if name in names:
            return name
    return None if any(isinstance(n, int) for n in names) else names[0]


def read(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


def load_result(folder):
    """result.json of a run, or None."""
    try:
        with open(os.path.join(folder, "result.json"), encoding="utf-8") as f:
            return json.load(f)
    except (OSError, ValueError):
        return None


def metric_rows(folder):
    """The rows of metrics.jsonl, without a torn last line."""
    try:
        with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as f:
            return [json.loads(line) for line in f if line.endswith("\n")]
    except FileNotFoundError:
        return []


def training_rows(folder):
    """[(step, loss, grad_norm)] of metrics.jsonl."""
    return [(row["step"], row["loss"], row["grad_norm"]) for row in metric_rows(folder)
            if "grad_norm" in row]


def last_row(folder):
    """The last whole training row of metrics.jsonl, or None."""
    try:
        with open(os.path.join(folder, "metrics.jsonl"), "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - TAIL))
            lines = f.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            return None
        if "grad_norm" in row:
            return row
    return None


def first_difference(folder, twin):
    """None where two runs agree bit for bit, else what differs first."""
    a, b = training_rows(folder), training_rows(twin)
    for (step, *mine), (other, *theirs) in zip(a, b):
        if step != other:
            return f"row of step {step} against step {other}"
        for name, x, y in zip(("loss", "grad_norm"), mine, theirs):
            if x != y and not (x != x and y != y):
                return f"training step {step}: {name} {x!r} against {y!r}"
    if len(a) != len(b) or not a:
        return f"{len(a)} training steps against {len(b)}"
    mine, theirs = (load_result(f).get("weights_sha256") for f in (folder, twin))
    return None if mine and mine == theirs else f"final weights {mine} against {theirs}"
