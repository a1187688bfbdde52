# SPDX-License-Identifier: MIT
"""What a run is of: the same content gives the same bits on one machine.

Content is the arm, its .config without names and paths, the sources that its binary was
compiled from, compiler and flags, data and seed. The state of git is recorded, not compared.
"""
import hashlib
import os
import re

from dotconfig import DotConfig
from study import StudyError

# Names, paths, and what the study itself is told: nothing of a run depends on them.
NAMES = ("RUN_NAME", "DATA_PATH", "SEED", "RA_MLA_ABLATION_MODE", "RA_MLA_ABLATION_STEPS",
         "ABLATION_ARMS", "ABLATION_SEEDS")
# What a run's content is made of, in the words of a message.
PARTS = {"config_sha256": "configuration", "sources_sha256": "sources", "compiler": "compiler",
         "data": "data"}


def sha256(*texts):
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def symbols(path):
    """{symbol: value} of a .config, without NAMES."""
    values = DotConfig.load(path).values
    return {name: value for name, value in values.items() if name not in NAMES}


def config_sha256(path):
    return sha256(*(f"{name}={value}" for name, value in sorted(symbols(path).items())))


def changes(base, path):
    """{symbol: value} of what a .config has otherwise than another; n where it has nothing."""
    old, new = symbols(base), symbols(path)
    return {name: new.get(name, "n") for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)}


def words(path):
    with open(path, encoding="utf-8") as f:
        return f.read().split()


def source_files(tree):
    """What the objects of a binary were compiled from, as the compiler listed it."""
    objects = [w for w in words(os.path.join(tree, "link.flags")) if w.endswith(".o")]
    files = {"scripts/embed.S", "scripts/build.mk"}
    for path in objects:
        if path.endswith("corpus-bin.o"):
            files.add("data/corpus.sha256")
        if os.path.exists(path[:-2] + ".d"):
            files.update(w for w in words(path[:-2] + ".d")
                         if not w.endswith((":", "\\")) and not os.path.isabs(w)
                         and not w.startswith(f"{os.path.relpath(tree)}/"))
    return sorted(files)


def file_sha256(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def sources_sha256(tree):
    return sha256(*(f"{path} {file_sha256(path)}" for path in source_files(tree)))


def compiler(tree):
    """Compiler, processor and flags of an object tree, without its own path."""
    text = " ".join(words(os.path.join(tree, "compile.flags")))
    extra = os.path.join(tree, "nvcc.flags")
    if os.path.exists(extra):
        text += " " + " ".join(words(extra))
    return text.replace(tree, "OBJ")


def data_sha256(described):
    """Of what `tenon plan --check` says of its data; a path does not count."""
    found = re.findall(r"[0-9a-f]{64}", described or "")
    if described and not found:
        raise StudyError(f"no SHA-256 in what is said of the data: {described}")
    return found[-1] if found else ""


def of_run(arm, seed):
    """The content of a run of an arm of study.json."""
    return sha256(str(arm["name"]), str(seed), *(arm[part] for part in PARTS))


def difference(old, new):
    """In words, which parts of two arms' contents differ."""
    return ", ".join(text for part, text in PARTS.items() if old.get(part) != new[part]) or "seed"
