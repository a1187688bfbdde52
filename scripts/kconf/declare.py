# SPDX-License-Identifier: MIT
"""What the Kconfig files declare beside their symbols.

Kconfig has no reals, no aliases and no idea of what a string names. The files
say these things in preprocessor variables (`real-X := [0, 1)`), which stand
beside the symbol they speak of, so that a new mixer edits nothing central.
The top Kconfig lists the kinds; this module parses them.
"""

import math
import re

import kconfiglib

REAL = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
INTERVAL = re.compile(r"([\[(])\s*(\S+),\s*(\S+)\s*([\])])")


class ConfigError(Exception):
    """One or more lines for the user, each of them complete."""

    def __init__(self, messages):
        self.messages = [messages] if isinstance(messages, str) else messages
        super().__init__("\n".join(self.messages))


def show(conf, name):
    """CONFIG_X=value."""
    return f"CONFIG_{name}={conf.value(name)}"


class Interval:
    """The values that a real symbol may take, from `[0, 1)` and the like."""

    def __init__(self, text):
        match = INTERVAL.fullmatch(text)
        if not match:
            raise ConfigError(f"Kconfig: bad interval '{text}'")
        self.text = text
        self.low, self.high = float(match[2]), float(match[3])
        self.open_low, self.open_high = match[1] == "(", match[4] == ")"

    def problem(self, text):
        """What is wrong with a value, or None."""
        if not REAL.fullmatch(text):
            return f"'{text}' is not a decimal number"
        value = float(text)
        if not math.isfinite(value):
            return f"'{text}' is not finite in double precision"
        low = value <= self.low if self.open_low else value < self.low
        high = value >= self.high if self.open_high else value > self.high
        if not low and not high:
            return None
        limit, is_open = (self.low, self.open_low) if low else \
            (self.high, self.open_high)
        nearest = f"{'just above' if low else 'just below'} {limit:g}" \
            if is_open else f"{limit:g}"
        return f"{text} is outside {self.describe()}; nearest legal {nearest}"

    def describe(self):
        """The interval for a message: words where one end is infinite."""
        if math.isinf(self.high):
            return (f"what is legal, above {self.low:g}" if self.open_low
                    else f"what is legal, {self.low:g} or more")
        return f"what is legal, {self.text}"


class Mode:
    """A choice whose selection files show as a word: CONFIG_X_MODE="topk"."""

    def __init__(self, string, members):
        self.string = string       # the symbol without prompt that has the word
        self.members = members     # word -> member of the choice
        self.choice = next(iter(members.values())).choice

    @classmethod
    def of(cls, sym):
        """The Mode that a symbol is the string of, or None."""
        if sym.orig_type != kconfiglib.STRING or not sym.orig_defaults or \
           any(node.prompt for node in sym.nodes):
            return None
        members = {}
        for value, cond in sym.orig_defaults:
            if not getattr(cond, "choice", None):
                return None
            members[value.str_value] = cond
        return cls(sym, members)

    def word(self, member):
        """The word of a member of the choice."""
        return next(w for w, m in self.members.items() if m is member)


class BlockName:
    """A name for BLOCK: `block-x := SYMBOL [writes TAP.., reads TAP..]`."""

    def __init__(self, name, text):
        symbol, _, taps = text.partition(" ")
        self.name, self.symbol = name, symbol
        self.taps = _taps(taps)


class Mechanism:
    """What a bool of a mixer needs: `needs-X := mixer reads T, writes U`."""

    def __init__(self, symbol, text):
        self.symbol = symbol
        self.mixer, _, taps = text.partition(" ")
        self.taps = _taps(taps)


def _conditions(text):
    """'A, B if X' as [(A, ''), (B, X)]."""
    rules = (rule.strip().partition(" if ") for rule in text.split(","))
    return [(rule, condition) for rule, _, condition in rules]


def _taps(text):
    """'writes A B, reads C' as {'writes': [A, B], 'reads': [C]}."""
    taps = {"reads": [], "writes": []}
    for part in filter(None, (p.split() for p in text.split(","))):
        taps[part[0]] += part[1:]
    return taps


class Tap:
    """A row of a tap: `tap-X := TYPE WIDTH [step WIDTH] [detached]`.

    A width is a product of numbers and symbols. `detached-if SYMBOL` leaves it
    to that switch whether gradients flow back.
    """

    FORM = re.compile(r"(act_t|acc_t) (\S+)(?: step (\S+))?"
                      r"(?: (detached)| detached-if (\S+))?")

    def __init__(self, name, text):
        match = self.FORM.fullmatch(text)
        if not match:
            raise ConfigError(f"Kconfig: bad tap-{name} '{text}'")
        self.name, self.type, self.width = name, match[1], match[2]
        self.step_width = match[3] or match[2]
        self.detached, self.detached_if = bool(match[4]), match[5]


class Declarations:
    """Every declaration of a Kconfig tree, by symbol or name."""

    def __init__(self, conf):
        found = {}
        for name, variable in conf.variables.items():
            kind, dash, rest = name.partition("-")
            if dash:
                found.setdefault(kind, {})[rest] = variable.value.strip()
        self.reals = {n: Interval(t) for n, t in found.get("real", {}).items()}
        self.aliases = {n: t.split() for n, t in found.get("alias", {}).items()}
        self.refusals = found.get("refuse", {})
        self.divides = {n: _conditions(t)
                        for n, t in found.get("divides", {}).items()}
        self.even, self.most, self.under, self.least = (
            {n: _conditions(t) for n, t in found.get(kind, {}).items()}
            for kind in ("even", "most", "under", "least"))
        self.legal = {n: list(map(int, t.split()))
                      for n, t in found.get("legal", {}).items()}
        self.equals = {n: t.split(" = ") for n, t in found.get("equals", {}).items()}
        self.positive = found.get("positive", {})
        self.below = found.get("below", {})
        self.free = found.get("free", {})
        self.tries = {n: t.split() for n, t in found.get("try", {}).items()}
        self.blocks = {n: BlockName(n, t)
                       for n, t in found.get("block", {}).items()}
        self.mechanisms = [Mechanism(n, t)
                           for n, t in found.get("needs", {}).items()]
        self.taps = [Tap(n, t) for n, t in found.get("tap", {}).items()]
        modes = filter(None, map(Mode.of, conf.unique_defined_syms))
        self.modes = {m.string: m for m in modes}
        self.mode_of_member = {member: m for m in self.modes.values()
                               for member in m.members.values()}

    def derived(self, sym):
        """Whether no line can set a symbol: it follows from others alone."""
        return bool(sym.nodes) and sym not in self.modes \
            and not any(node.prompt for node in sym.nodes)
