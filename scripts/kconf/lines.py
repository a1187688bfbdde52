# SPDX-License-Identifier: MIT
"""Reads the lines of a configuration file, strictly.

A line is understood and its value checked without looking at any other line:
aliases, mode words and unquoted reals are translated here, so that the rest
knows one name and one form of a value only.
"""

import collections
import difflib
import re

import kconfiglib

from .declare import ConfigError

ASSIGN = re.compile(r"CONFIG_([A-Za-z0-9_]+)=(.*)")
BASE = re.compile(r"#\s*base:\s*(.*)")
UNSET = re.compile(r"# CONFIG_([A-Za-z0-9_]+) is not set")
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
BOOLS = (kconfiglib.BOOL, kconfiglib.TRISTATE)

# text is the line as it stands, symbol and value what it means. A weak line
# comes from an alias and yields to a line that names its symbol.
Line = collections.namedtuple("Line", "file number text symbol value bare weak")


class BadValue(Exception):
    """The reason why a value cannot be that of its symbol."""


def read(path):
    """Lines of a file as text."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def base(path):
    """NAME of a file that begins with `# base: NAME`, else None."""
    named = [(number, match[1]) for number, text in enumerate(read(path), 1)
             if (match := BASE.fullmatch(text.strip()))]
    for number, name in named:
        if number > 1:
            raise ConfigError(f"{path}:{number}: a base must be the first line")
        if not re.fullmatch(r"\S+", name):
            raise ConfigError(f"{path}:{number}: name one defconfig as base")
    return named[0][1] if named else None


def parse(conf, path):
    """Line tuples of a file; ConfigError has every bad line of it."""
    found, errors = [], []
    for number, text in enumerate(map(str.strip, read(path)), 1):
        unset = UNSET.fullmatch(text)
        if not text or (text[0] == "#" and not unset):
            continue
        assign = ASSIGN.fullmatch(text)
        if not assign and not unset:
            errors.append(f"{path}:{number}: '{text}' is not an assignment; "
                          "write CONFIG_NAME=value, or # for a comment")
            continue
        name, raw = (unset[1], None) if unset else assign.groups()
        try:
            found += [Line(path, number, text, *meaning)
                      for meaning in translate(conf, name, raw)]
        except BadValue as reason:
            errors.append(f"{path}:{number}: {text}: {reason}")
    if errors:
        raise ConfigError(errors)
    return found


def translate(conf, name, raw):
    """(symbol, value, bare, weak) for what one line sets; raw None is unset."""
    targets = conf.decl.aliases.get(name)
    if targets is None:
        return [_assign(conf, name, raw)]
    if ":" not in targets[0]:
        return [_assign(conf, targets[0], raw), *(_effect(conf, t) for t in targets[1:])]
    cases = [target.split(":", 1) for target in targets]
    words = {word for word, _ in cases}
    if words <= {"y", "n"}:
        value, words = _bool(raw), {"y", "n"}
    else:
        value = _string(raw)
    if value not in words:
        raise BadValue(f"choose one of {_list(words)}")
    return [_effect(conf, effect) for word, effect in cases if word == value]


def _effect(conf, effect):
    """One effect of an alias: X selects, X?=v sets unless a line names X."""
    name, _, value = effect.partition("?=")
    if value:
        return conf.syms[name], value, False, True
    return conf.syms[name], "y", False, False


def _assign(conf, name, raw):
    """The meaning of a line that names a symbol itself."""
    sym = conf.syms.get(name)
    if sym is None or not sym.nodes:
        raise BadValue(_unknown(conf, name))
    if conf.decl.derived(sym):
        raise BadValue("follows from other symbols; delete the line")
    if name in conf.decl.reals:
        return _real(conf.decl.reals[name], sym, raw)
    if sym.orig_type in BOOLS:
        value = _bool(raw)
        mode = conf.decl.mode_of_member.get(sym)
        if mode and value == "y":
            return mode.string, mode.word(sym), False, False
    elif sym.orig_type == kconfiglib.INT:
        value = _int(sym, raw)
    else:
        value = _string(raw)
        mode = conf.decl.modes.get(sym)
        if mode and value not in mode.members:
            raise BadValue(f"choose one of {_list(mode.members)}")
    return sym, value, False, False


def _unknown(conf, name):
    names = [s.name for s in conf.unique_defined_syms] + list(conf.decl.aliases)
    close = difflib.get_close_matches(name, names, 1, 0.7)
    hint = f"did you mean CONFIG_{close[0]}?" if close else \
        "`make menuconfig` (key /) searches all symbols"
    return f"no such symbol; {hint}"


def _list(words):
    return ", ".join(f'"{word}"' for word in sorted(words))


def _bool(raw):
    value = "n" if raw is None else raw
    if value not in ("y", "n"):
        raise BadValue("is a switch; write y or n")
    return value


def _given(raw):
    if raw is None:
        raise BadValue("is not a switch; delete the line for its default")
    return raw


def _int(sym, raw):
    if not re.fullmatch(r"-?[0-9]{1,18}", _given(raw)):
        raise BadValue("is a whole number; write it in decimal, unquoted")
    value = int(raw)
    problem = range_problem(sym, value, sym.kconfig.y)
    if problem:
        raise BadValue(problem)
    return str(value)


def range_problem(sym, value, *conditions):
    """Why a number cannot be that of its symbol, or None. The first range counts whose
    condition is one of these; without any, whose condition now holds."""
    for low, high, condition in sym.orig_ranges:
        if condition in conditions or \
                (not conditions and kconfiglib.expr_value(condition)):
            low, high = int(low.str_value), int(high.str_value)
            if low <= value <= high:
                return None
            near = low if value < low else high
            where = "" if condition is sym.kconfig.y else " with " + \
                kconfiglib.expr_str(condition, lambda item: f"CONFIG_{item.name}")
            return (f"is outside what is legal{where}, {low}..{high}; "
                    f"nearest legal {near}")
    return None


def _string(raw):
    match = QUOTED.fullmatch(_given(raw))
    if not match:
        raise BadValue('is a string; write it in double quotes')
    return re.sub(r"\\(.)", r"\1", match[1])


def _real(interval, sym, raw):
    bare = not _given(raw).startswith('"')
    value = raw if bare else _string(raw)
    problem = interval.problem(value)
    if problem:
        raise BadValue(problem)
    return sym, value, bare, False
