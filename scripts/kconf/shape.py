# SPDX-License-Identifier: MIT
"""Sizes that must divide or stay below a limit, as the Kconfig files declare.

An expression is a product of numbers and symbols (`4*N_EMBD`), or several joined
by `or`: the first that is not 0 counts (`INTERMEDIATE_SIZE or 4*N_EMBD`). It may be
divided by a symbol or number (`N_EMBD/N_HEAD`).
"""

import math
import re

from .declare import show

LIMIT = 2 ** 31


def violations(conf):
    """All objections, as texts."""
    for name, rules in conf.decl.divides.items():
        for expression, condition in rules:
            if holds(conf, condition):
                yield from _divides(conf, name, expression, condition)
    for name, rules in conf.decl.even.items():
        for expression, condition in rules:
            if on(conf, name) and holds(conf, condition):
                yield from _even(conf, name, expression, condition)
    for name, condition in conf.decl.positive.items():
        if on(conf, name) and holds(conf, condition) and not float(conf.value(name)):
            yield (f"{show(conf, name)} must be above 0, as {_cause(conf, condition)}; "
                   "nearest legal just above 0")
    for name, values in conf.decl.legal.items():
        if on(conf, name) and conf.number(name) not in values:
            yield (f"{show(conf, name)} is none of {', '.join(map(str, values))}; nearest "
                   f"legal {_near(values, conf.number(name))}")
    for name, (product, wanted) in conf.decl.equals.items():
        if on(conf, name):
            yield from _equals(conf, product, wanted)
    for name, rules in conf.decl.least.items():
        for expression, _ in rules:
            words, limit = _factors(conf, expression)
            if on(conf, name) and 0 < conf.number(name) < limit:
                yield (f"{show(conf, name)} is neither 0 nor at least {_named(words)}={limit}; "
                       f"nearest legal {limit}")
    for strict, limits in ((False, conf.decl.most), (True, conf.decl.under)):
        for name, rules in limits.items():
            for expression, condition in rules:
                if on(conf, name) and holds(conf, condition):
                    yield from _limit(conf, name, expression, condition, strict)
    for expression in conf.decl.below.values():
        yield from _below(conf, expression.split("*"))


def holds(conf, condition):
    """Whether a Kconfig expression is true; '' is."""
    return not condition or conf.eval_string(condition) > 0


def on(conf, name):
    """Whether a switch is y, or a number counts: its symbol has a value."""
    return conf.value(name) not in ("", "n")


def _factors(conf, text):
    """(words, value) of the product that counts in an expression."""
    for part in text.split(" or "):
        over, _, under = part.partition("/")
        words = over.split("*")
        value = math.prod(int(w) if w.isdigit() else conf.number(w)
                          for w in words)
        if under:
            words[-1] += "/" + under
            value //= int(under) if under.isdigit() else conf.number(under)
        if value:
            break
    return words, value


def _named(words):
    """A product with its symbols as files write them."""
    return re.sub("[A-Z][A-Z0-9_]*", r"CONFIG_\g<0>", "*".join(words))


def value(conf, text):
    """The value of an expression."""
    return _factors(conf, text)[1]


def _divides(conf, name, expression, condition):
    number = conf.number(name)
    words, multiple = _factors(conf, expression)
    if number and multiple % number:
        cause = f", as {_cause(conf, condition)}" if condition else ""
        yield (f"{show(conf, name)} does not divide {_named(words)}={multiple}{cause}; "
               f"nearest that do: {_divisors_near(multiple, number)}")


def _even(conf, name, expression, condition):
    words, number = _factors(conf, expression)
    if not number % 2:
        return
    over, _, under = words[0].partition("/")
    if under and conf.number(over) % 2 == 0:
        near = f"CONFIG_{under}=" + _divisors_near(conf.number(over) // 2,
                                                   conf.number(under))
    elif under:
        near = f"CONFIG_{over}={(number + 1) * conf.number(under)}"
    else:
        near = f"{number - 1} and {number + 1}"
    lines = ", ".join(show(conf, n) for n in dict.fromkeys((over, under, name)) if n)
    cause = f" ({_cause(conf, condition).rpartition(' ')[0]})" if condition else ""
    yield (f"{lines}{cause}: elements rotate in pairs, but {_named(words)} is "
           f"{number}; nearest legal {near}")


def _limit(conf, name, expression, condition, strict):
    words, limit = _factors(conf, expression)
    if conf.number(name) > limit - strict:
        cause = f", as {_cause(conf, condition)}" if condition else ""
        yield (f"{show(conf, name)} is not {'below' if strict else 'at most'} "
               f"{_named(words)}={limit}{cause}; nearest legal {limit - strict}")


def _cause(conf, condition):
    """A condition as the lines that make it true, with a verb."""
    lines = []
    for no, name in re.findall(r"(!?)([A-Z]\w+)", condition):
        if not conf.syms[name].choice and conf.value(name).isdecimal():
            lines.append(show(conf, name))
            continue
        mode = conf.decl.mode_of_member.get(conf.syms[name])
        lines.append(f'CONFIG_{mode.string.name}="{mode.string.str_value}"'
                     if mode else f"CONFIG_{name}={'n' if no else 'y'}")
    return " and ".join(lines) + (" need" if lines[1:] else " needs")


def _divisors_near(number, want):
    """The divisors of a number just below and just above a value."""
    return _near({d for i in range(1, math.isqrt(number) + 1) if number % i == 0
                  for d in (i, number // i)}, want)


def _near(values, want):
    """Those just below and just above a value."""
    below = max((v for v in values if v < want), default=None)
    above = min((v for v in values if v > want), default=None)
    return " and ".join(str(v) for v in (below, above) if v is not None)


def _equals(conf, product, wanted):
    """A product that must be another one: which of its factors could mend it, and how."""
    names = product.split("*")
    number, (words, total) = math.prod(map(conf.number, names)), _factors(conf, wanted)
    if number == total:
        return
    mends = [f"CONFIG_{n}={total // rest}" for n in names
             if not total % (rest := number // conf.number(n))]
    near = " or ".join(mends) or \
        f"for CONFIG_{names[-1]} {_divisors_near(total, conf.number(names[-1]))}"
    yield (f"{', '.join(show(conf, n) for n in names)}: their product {number} is not "
           f"{_named(words)}={total}; nearest legal {near}")


def _below(conf, names):
    """Rows and list entries are counted in 32 bits."""
    product = math.prod(map(conf.number, names))
    if product >= LIMIT:
        last = max(names, key=conf.number)
        rest = product // conf.number(last)
        yield (f"{', '.join(show(conf, n) for n in names)}: their product "
               f"{product} must be below 2^31={LIMIT}; for instance "
               f"CONFIG_{last}={(LIMIT - 1) // rest}")
