# SPDX-License-Identifier: MIT
"""Writes what the build reads: autoconf.h, taps.h, free.h, auto.conf, stamps.

autoconf.h has every int, real and string whether it has a value or not, so
that code of a disabled mechanism still compiles and its arrays get dimension
0. A stamp is an empty file for each symbol, touched when what the header says
about the symbol changes; objects depend on the stamps of what they use.
"""

import os
import re

import kconfiglib

from . import stack
from .config import write_if_changed

DEFINE = re.compile(r"#define CONFIG_(\w+) .*\n")


def sync(conf, directory):
    """Bring the generated files of an object tree up to date."""
    header = os.path.join(directory, "include/generated/autoconf.h")
    stamps = os.path.join(directory, "include/config")
    entries = {sym.name: _define(conf, sym) for sym in conf.unique_defined_syms}
    write_if_changed(os.path.join(directory, "include/generated/taps.h"),
                     stack.header(conf))
    write_if_changed(os.path.join(directory, "include/generated/free.h"),
                     _free_text(conf))
    _touch_stamps(stamps, _old_entries(header, entries), entries)
    write_if_changed(os.path.join(stamps, "auto.conf"), _make_text(conf))
    # Last: an interrupted run touches the stamps again.
    write_if_changed(header, "/* Written by scripts/kconfig.py. */\n"
                     + "".join(entries.values()))


def _define(conf, sym):
    """The #define lines of a symbol."""
    name, value = f"#define CONFIG_{sym.name}", sym.str_value
    if sym.orig_type == kconfiglib.BOOL:
        return f"{name} 1\n" if value == "y" else ""
    if sym.orig_type == kconfiglib.INT:
        return f"{name} {value or 0}\n"
    if sym.name in conf.decl.reals:
        real = float(value or 0) + 0.0      # no -0.0
        return f"{name} {real!r}\n{name}_NONZERO {int(real != 0)}\n"
    text = f'{name} "{kconfiglib.escape(value)}"\n'
    if sym.name in stack.NAMES:
        text += f"{name}_LEN {len(value.split())}\n"
    if sym.name == "BLOCK_ALT_LAYERS":
        text += f"{name}_NR {len(stack.alt_layers(conf))}\n"
    return text


def _free_text(conf):
    """free.h: the symbols that checkpoints may differ in, as C strings.

    One member stands for its whole choice.
    """
    lists = {"resume": [], "weights": []}
    for name, use in conf.decl.free.items():
        sym = conf.syms[name]
        lists[use] += sym.choice.syms if sym.choice else [sym]
    out = ["/* Written by scripts/kconfig.py: free-X of the Kconfig files. */\n"]
    for use, syms in lists.items():
        names = ", \\\n".join(f'\t"{sym.name}"' for sym in syms)
        out.append(f"#define FREE_{use.upper()} \\\n{names}\n")
    return "".join(out)


def _make_text(conf):
    """auto.conf: the symbols that have a value, in make's syntax."""
    out = ["# Written by scripts/kconfig.py.\n"]
    for sym in conf.unique_defined_syms:
        value = sym.str_value
        if sym.orig_type == kconfiglib.STRING and sym.config_string:
            value = f'"{kconfiglib.escape(value)}"'
            value = value.replace("$", "$$").replace("#", "\\#")
        if value not in ("", "n"):
            out.append(f"CONFIG_{sym.name}={value}\n")
    return "".join(out)


def _old_entries(header, entries):
    """The #define lines of the last run, by the symbol they belong to."""
    old = {}
    try:
        with open(header, encoding="utf-8") as file:
            for line in file:
                match = DEFINE.fullmatch(line)
                if match:
                    name = _owner(match[1], entries)
                    old[name] = old.get(name, "") + line
    except FileNotFoundError:
        pass
    return old


def _owner(name, entries):
    """The symbol of a derived name: X_NONZERO, X_LEN and X_NR."""
    base = name.rpartition("_")[0]
    return base if name not in entries and base in entries else name


def _touch_stamps(directory, old, new):
    os.makedirs(directory, exist_ok=True)
    present = set(os.listdir(directory))
    for name in dict.fromkeys([*new, *old]):
        if name not in present or old.get(name, "") != new.get(name, ""):
            with open(os.path.join(directory, name), "w", encoding="utf-8"):
                os.utime(os.path.join(directory, name))
