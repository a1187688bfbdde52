# SPDX-License-Identifier: MIT
"""explain: one symbol of a configuration, where it is from and what it touches."""

import os
import re

import kconfiglib

SOURCES = ("arch", "ckpt", "data", "dist", "include", "infer", "lib", "model", "tools", "train")
FREE = {"resume": "may differ in it",
        "weights": "may differ in it where their weights alone are used"}
FEW = 8         # objects that are named one by one


def explain(conf, sym, gen, begun):
    """(tag, words) for each line.

    gen is the folder of objects; begun has the lines of the defconfig that the
    configuration is named after, by symbol.
    """
    yield "value", conf.value(sym.name) or "none, it is not open"
    for node in sym.nodes:
        words = f', "{node.prompt[0]}"' if node.prompt else ", without prompt"
        yield "stands in", f"{node.filename}:{node.linenr}{words}"
    yield "set by", _origin(conf, sym, begun)
    yield "legal", _legal(conf, sym)
    yield "depends on", _expr(sym.direct_dep)
    if sym.orig_selects:
        yield "selects", _names(s for s, _ in sym.orig_selects)
    decides = _names(s for s in conf.unique_defined_syms
                     if sym in kconfiglib.expr_items(s.direct_dep))
    if decides:
        yield "decides on", decides
    yield "checkpoints", _checkpoints(conf, sym)
    yield "read by", " ".join(_readers(sym)) or "no source: it acts through Kconfig alone"
    yield "recompiles", " ".join(_objects(sym, gen)) or "nothing that has been built here"


def _origin(conf, sym, begun):
    """The line, the select or the default that a value comes from."""
    mode = conf.decl.mode_of_member.get(sym)
    chosen = mode.string if mode else sym.choice.selection if sym.choice else sym
    line = conf.origin.get(chosen.name) if chosen else None
    if line:
        first = begun.get(chosen.name)
        places = [f"{line.file}:{line.number}"]
        if first:
            same = "also" if first.value == line.value else f"{first.value} in"
            places.append(f"{same} {first.file}:{first.number}")
        elif not sym.choice and sym.str_value == sym._str_default():
            places.append("which is the default")
        return ", ".join(places)
    selecting = _names(s for s in conf.unique_defined_syms for target, cond in s.orig_selects
                       if target is sym and s.tri_value and kconfiglib.expr_value(cond))
    if selecting:
        return f"select of {selecting}"
    return "default" if sym.str_value else "nothing"


def _legal(conf, sym):
    """What a line may say."""
    if not any(node.prompt for node in sym.nodes):
        mode = conf.decl.modes.get(sym)
        return " or ".join(f'"{word}"' for word in mode.members) if mode else \
            "no line: it follows from others"
    if sym.choice:
        return f"y, one of {_names(sym.choice.syms)}"
    if sym.orig_type == kconfiglib.BOOL:
        return "y or n"
    low_high = [f"{low.str_value} to {high.str_value}" for low, high, _ in sym.orig_ranges]
    interval = conf.decl.reals.get(sym.name)
    divides = [f"divides {rule}" for rule, _ in conf.decl.divides.get(sym.name, [])]
    words = low_high + ([f"a number in {interval.text}"] if interval else []) + divides
    return "; ".join(words) or "a string"


def _expr(expr):
    """A condition with the value of each symbol in it."""
    text = kconfiglib.expr_str(expr, lambda s: s.name + f" (={s.str_value})"
                               if isinstance(s, kconfiglib.Symbol) and s.nodes
                               else kconfiglib.standard_sc_expr_str(s))
    return "nothing" if text == "y" else text


def _names(syms):
    return ", ".join(dict.fromkeys(s.name for s in syms))


def _checkpoints(conf, sym):
    """Whether a checkpoint has to agree in it."""
    names = [sym.name] + ([s.name for s in sym.choice.syms] if sym.choice else [])
    free = next((conf.decl.free[n] for n in names if n in conf.decl.free), None)
    return FREE.get(free, "must agree in it")


def _readers(sym):
    """Files of the sources and of make that name it."""
    word = re.compile(rf"CONFIG_{sym.name}\b")
    files = [*_files(SOURCES, (".c", ".h", ".cu", "Makefile")), "Makefile", "scripts/build.mk",
             "scripts/ablate.py", "scripts/study.py"]
    return [path for path in files if word.search(_read(path))]


def _objects(sym, gen):
    """Objects of the last build that depend on it."""
    word = re.compile(rf"/include/config/{sym.name}(\s|$)")
    built = _files([os.path.join(gen, top) for top in SOURCES], (".d",))
    found = [os.path.relpath(path, gen).removesuffix("d") + "o" for path in built
             if word.search(_read(path))]
    return found if len(found) <= FEW else [f"{len(found)} objects:", *found[:FEW], "..."]


def _files(tops, ends):
    return [os.path.join(base, name) for top in tops for base, _, names in sorted(os.walk(top))
            for name in sorted(names) if name.endswith(ends)]


def _read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
