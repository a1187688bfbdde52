# SPDX-License-Identifier: MIT
"""A line that does not take effect is an error, or a note where it was asked.

A line is moot, and only noted, if the same or a later file switches off what
it depends on: with =n, with `is not set`, with another mode or another member
of the choice. Everything else that has no effect is an error with the reason.
"""

import kconfiglib

from . import lines
from .declare import ConfigError


def check(conf, own):
    """Check the lines of the file just loaded (symbol -> line)."""
    errors, moot = [], []
    for line in own.values():
        if effective(line):
            continue
        culprit = None if _derived(conf, line.symbol) else \
            _blame_line(conf, line, own)
        if culprit and not _refused(conf, line, culprit):
            moot.append((line, culprit))
        else:
            errors.append(f"{line.file}:{line.number}: {line.text}: "
                          + _reason(conf, line))
    if errors:
        raise ConfigError(errors)
    _note(conf, moot)


def check_overridden(conf, merged, bases=0):
    """Note lines of earlier files that later ones made moot; refuse numbers for which
    later ones left no room.

    Not for the first files, which the next one is based on, among themselves.
    """
    moot, errors, one = [], [], {line.file for own in merged[:bases + 1]
                                 for line in own.values()}
    for i, own in enumerate(merged[:-1]):
        later = {sym: line for m in merged[i + 1:] for sym, line in m.items()}
        for line in own.values():
            if effective(line) or _replaced(line, later):
                continue
            if out_of_range(line):
                errors.append(f"{line.file}:{line.number}: {line.text}: "
                              + out_of_range(line))
                continue
            culprit = _blame_line(conf, line, {**own, **later})
            if culprit and culprit.file != line.file \
                    and not {culprit.file, line.file} <= one:
                moot.append((line, culprit))
    if errors:
        raise ConfigError(errors)
    _note(conf, moot)


def out_of_range(line):
    """Why a number is outside the range that its symbol now has, or None."""
    sym = line.symbol
    if sym.orig_type != kconfiglib.INT or not sym.visibility:
        return None
    return lines.range_problem(sym, int(line.value))


def effective(line):
    """Whether a symbol has the value that its line gave it."""
    return line.symbol.str_value == line.value


def _replaced(line, later):
    """Whether a later file simply sets the symbol or its choice anew."""
    sym = line.symbol
    return sym in later or (sym.choice and
                            any(s in later for s in sym.choice.syms))


def _refused(conf, line, culprit):
    """Whether the last word in a file asks for what this version does not have."""
    return (line.symbol.name in conf.decl.refusals and line.value == "y"
            and culprit.number < line.number)


def _derived(conf, sym):
    """Whether a symbol now has a value that no line can change."""
    return (sym not in conf.decl.modes and not sym.choice
            and sym.orig_type not in (kconfiglib.BOOL, kconfiglib.TRISTATE)
            and not sym.visibility and sym.str_value != "")


def _note(conf, moot):
    """One note for each switch and file, naming every line it made moot."""
    groups = {}
    for line, culprit in moot:
        groups.setdefault((line.file, culprit), []).append(line)
    for (file, culprit), members in groups.items():
        said = dict.fromkeys((line.number, line.text) for line in members)
        numbers = ",".join(str(number) for number, _ in said)
        texts = ", ".join(text for _, text in said)
        conf.notes.append(f"{file}:{numbers}: {texts}: no effect beside "
                          f"{culprit.text} ({culprit.file}:{culprit.number})")


# Who switched it off

def _blame_line(conf, line, own):
    sym = line.symbol
    if sym in conf.decl.modes:
        mode = conf.decl.modes[sym]
        return own.get(mode.members[line.value]) or \
            _blame(conf, _condition(mode.choice), own)
    if line.value == "n":
        return None
    return _off(conf, sym, own)


def _off(conf, sym, own):
    """The line in 'own' that keeps a symbol n or without value, or None."""
    line = own.get(sym)
    if line and line.value == "n":
        return line
    picked = sym.choice.selection if sym.choice else None
    if picked and picked is not sym:
        return _picks(conf, picked, own)
    return _blame(conf, _condition(sym), own)


def _picks(conf, sym, own):
    """The line in 'own' that sets a symbol to y, or None."""
    mode = conf.decl.mode_of_member.get(sym)
    line = own.get(mode.string if mode else sym)
    wanted = mode.word(sym) if mode else "y"
    return line if line and line.value == wanted else None


def _condition(item):
    """What a symbol or choice depends on; without prompt, what selects it."""
    prompt = item.nodes[0].prompt
    if prompt:
        return prompt[1]
    selected = getattr(item, "rev_dep", item.kconfig.n)
    return item.direct_dep if selected is item.kconfig.n else selected


def _blame(conf, expr, own):
    """The line in 'own' that makes an expression n, or None."""
    if kconfiglib.expr_value(expr):
        return None
    if isinstance(expr, kconfiglib.Choice):
        return _blame(conf, _condition(expr), own)
    if isinstance(expr, kconfiglib.Symbol):
        return None if expr.is_constant else _off(conf, expr, own)
    if expr[0] == kconfiglib.NOT:
        inner = expr[1]
        return _picks(conf, inner, own) \
            if isinstance(inner, kconfiglib.Symbol) else None
    if expr[0] in (kconfiglib.AND, kconfiglib.OR):
        return _blame(conf, expr[1], own) or _blame(conf, expr[2], own)
    return next(filter(None, map(own.get, expr[1:])), None)


# What is missing

def _reason(conf, line):
    sym = line.symbol
    refusal = conf.decl.refusals.get(sym.name)
    if refusal and not sym.visibility:
        return refusal
    if out_of_range(line):
        return out_of_range(line)
    if _derived(conf, sym):
        return (f"contradicts the selection that makes it {sym.str_value}; "
                f"delete the line, or set {_missing(conf, sym)}")
    missing = _missing(conf, conf.decl.modes[sym].choice
                       if sym in conf.decl.modes else sym)
    if missing:
        return f"no effect, because it needs {missing}"
    if not sym.choice:
        return "no effect here; delete the line"
    others = ", ".join(f"CONFIG_{s.name}=y" for s in sym.choice.syms
                       if s is not sym and s.visibility)
    return f"its choice falls back on it; select another: {others}"


def _missing(conf, item):
    """The unmet part of a condition, as lines that would meet it."""
    return " and ".join(dict.fromkeys(_unmet(conf, _condition(item))))


def _unmet(conf, expr):
    if kconfiglib.expr_value(expr):
        return []
    if isinstance(expr, kconfiglib.Choice):
        return _unmet(conf, _condition(expr))
    if isinstance(expr, kconfiglib.Symbol):
        return _unmet(conf, _condition(expr)) \
            if conf.decl.derived(expr) else [_wish(conf, expr)]
    if expr[0] == kconfiglib.AND:
        return _unmet(conf, expr[1]) + _unmet(conf, expr[2])
    if expr[0] == kconfiglib.OR:
        sides = (_unmet(conf, side) for side in expr[1:])
        return ["(" + " or ".join(" and ".join(side) for side in sides) + ")"]
    if expr[0] == kconfiglib.NOT and isinstance(expr[1], kconfiglib.Symbol):
        return [f"CONFIG_{expr[1].name}=n"]
    return [kconfiglib.expr_str(expr)]


def _wish(conf, sym):
    mode = conf.decl.mode_of_member.get(sym)
    if mode:
        return f'CONFIG_{mode.string.name}="{mode.word(sym)}"'
    return f"CONFIG_{sym.name}=y"
