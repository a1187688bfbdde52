# SPDX-License-Identifier: MIT
"""The stack of sub-layers: names in BLOCK, and the taps between them.

BLOCK_ALT takes the place of BLOCK in the layers that BLOCK_ALT_LAYERS lists, so
every question about who stands before whom is asked of the list of all layers.
"""

import difflib
import re

from . import shape
from .declare import show

NAMES = ("BLOCK", "BLOCK_ALT")


def violations(conf):
    """All objections, as texts."""
    found = [*_names(conf), *_layers(conf)]
    # Taps mean nothing in a stack that names what is not there.
    return found or list(_taps(conf))


def alt_layers(conf):
    """The numbers in BLOCK_ALT_LAYERS."""
    text = conf.value("BLOCK_ALT_LAYERS")
    return [int(word) for word in re.findall("[0-9]{1,9}", text)]


def stack(conf):
    """The names of all sub-layers, from the first layer to the last."""
    words = [conf.value(name).split() for name in NAMES]
    alt = set(alt_layers(conf))
    return [word for layer in range(conf.number("N_LAYER"))
            for word in words[layer in alt]]


# Names

def _names(conf):
    blocks = conf.decl.blocks
    meant = set()
    for name in NAMES:
        text = conf.value(name)
        words = text.split()
        if not words and name == "BLOCK":
            yield ('CONFIG_BLOCK="" names no sub-layer; for instance "mha mlp" '
                   'or "ra_mla recip"')
        elif text != " ".join(words):
            yield (f"{quoted(conf, name)}: separate the names by one space: "
                   f'"{" ".join(words)}"')
        for word in dict.fromkeys(words):
            meant.add(word)
            if word not in blocks:
                close = difflib.get_close_matches(word, blocks, 1)
                meant.update(close)
                yield (f"{quoted(conf, name)} names {word}, which does not "
                       "exist; " + (f"did you mean {close[0]}?" if close else
                                    f"there are {', '.join(sorted(blocks))}"))
            elif not conf.on(blocks[word].symbol):
                yield (f"{quoted(conf, name)} names {word}, which is off; set "
                       f"CONFIG_{blocks[word].symbol}=y, or drop the name")
    yield from _unnamed(conf, meant)


def _unnamed(conf, meant):
    """Objections to mixers that are on and stand nowhere."""
    where = " and ".join(quoted(conf, name) for name in NAMES
                         if name == "BLOCK" or conf.value(name))
    verb = "do" if " and " in where else "does"
    for block in conf.decl.blocks.values():
        if conf.on(block.symbol) and block.name not in meant:
            yield (f"CONFIG_{block.symbol}=y, but {where} {verb} not name "
                   f"{block.name}; add it, or set CONFIG_{block.symbol}=n")


def quoted(conf, name):
    """CONFIG_X="value"."""
    return f'CONFIG_{name}="{conf.value(name)}"'


def _layers(conf):
    """Objections to BLOCK_ALT_LAYERS as a list, and beside BLOCK_ALT."""
    name, text = "BLOCK_ALT_LAYERS", conf.value("BLOCK_ALT_LAYERS")
    layers, deep = alt_layers(conf), conf.number("N_LAYER")
    legal = sorted({n for n in layers if n < deep})
    if text != ",".join(map(str, legal)):
        yield (f"{quoted(conf, name)} is not an ascending comma list of layers "
               f"0 to {deep - 1} ({show(conf, 'N_LAYER')}); nearest legal "
               f'"{",".join(map(str, legal))}"')
    elif text and not conf.value("BLOCK_ALT"):
        yield (f'{quoted(conf, name)}, but CONFIG_BLOCK_ALT="" says nothing of '
               'these layers; for instance CONFIG_BLOCK_ALT="mha mlp"')
    elif conf.value("BLOCK_ALT") and not text:
        yield (f"{quoted(conf, 'BLOCK_ALT')}, but {quoted(conf, name)} lists no "
               f'layer; for instance CONFIG_{name}="0"')
    elif len(legal) == deep:
        yield (f"{quoted(conf, name)} lists every layer, so that no one is "
               f"CONFIG_BLOCK; set {quoted(conf, 'BLOCK_ALT')} as CONFIG_BLOCK "
               "and drop both")


# Taps: what crosses from one sub-layer to a later one

def _mechanisms(conf):
    """The mechanisms that are on."""
    return [m for m in conf.decl.mechanisms if conf.on(m.symbol)]


def active_taps(conf):
    """Names of the taps that a mechanism which is on needs.

    A tap that no mechanism needs, whether on or off, is always active.
    """
    needed = {tap for m in conf.decl.mechanisms for tap in _all(m)}
    on = {tap for m in _mechanisms(conf) for tap in _all(m)}
    return {tap.name for tap in conf.decl.taps
            if tap.name in on or tap.name not in needed}


def _all(end):
    """The taps of a block name or mechanism."""
    return end.taps["reads"] + end.taps["writes"]


def ends(conf, name, verb):
    """The taps that a mixer 'reads' or 'writes' in this configuration."""
    found = [*conf.decl.blocks[name].taps[verb],
             *(tap for m in _mechanisms(conf) if m.mixer == name
               for tap in m.taps[verb])]
    return set(found) & active_taps(conf)


def known_taps(conf):
    """The taps that the mixers which are on may name, in declared order."""
    on = {b.name for b in conf.decl.blocks.values() if conf.on(b.symbol)}
    named = {tap for b in conf.decl.blocks.values() if b.name in on
             for tap in _all(b)}
    named |= {tap for m in conf.decl.mechanisms if m.mixer in on
              for tap in _all(m)}
    return [tap for tap in conf.decl.taps if tap.name in named]


def _taps(conf):
    """Objections to who writes and who reads in the stack of all layers."""
    layers = stack(conf)
    writes, reads = ({name: ends(conf, name, verb) for name in set(layers)}
                     for verb in ("writes", "reads"))
    for mechanism in _mechanisms(conf):
        for tap in mechanism.taps["reads"]:
            if not _joined(layers, lambda n: tap in writes[n],
                           mechanism.mixer.__eq__):
                yield _unjoined(conf, mechanism, tap, layers, "writes")
        for tap in mechanism.taps["writes"]:
            if not _joined(layers, mechanism.mixer.__eq__,
                           lambda n: tap in reads[n]):
                yield _unjoined(conf, mechanism, tap, layers, "reads")
    for tap in conf.decl.taps:
        yield from _second_reader(conf, layers, tap.name, writes, reads)


def _joined(layers, writes, reads):
    """Whether a writer somewhere in the stack has a later reader."""
    first = next((i for i, n in enumerate(layers) if writes(n)), len(layers))
    return any(map(reads, layers[first + 1:]))


def _blocks(conf):
    """The lines of BLOCK and, where it is set, BLOCK_ALT in words."""
    if not conf.value("BLOCK_ALT"):
        return quoted(conf, "BLOCK")
    return " and ".join(quoted(conf, n) for n in (*NAMES, "BLOCK_ALT_LAYERS"))


def _unjoined(conf, mechanism, tap, layers, verb):
    """The objection to a mechanism whose other end is missing."""
    partners = [name for name, block in conf.decl.blocks.items()
                if tap in block.taps[verb]]
    side = "before" if verb == "writes" else "after"
    mixer = mechanism.mixer
    need = (f"CONFIG_{mechanism.symbol}=y, but in {_blocks(conf)} with "
            f"{show(conf, 'N_LAYER')} nothing {side} {mixer} {verb} {tap}; ")
    present = [name for name in partners if name in layers]
    if present:
        other = "list other layers" if conf.value("BLOCK_ALT") else \
            "set CONFIG_N_LAYER=2 or more"
        return need + f"{other}, or put {present[0]} {side} {mixer}"
    return need + f"add {' or '.join(partners)} {side} {mixer}"


def _second_reader(conf, layers, tap, writes, reads):
    """At most one reader between one writer of a tap and the next."""
    written, read = None, None
    for name in layers:
        if tap in reads[name] and written:
            if read:
                yield (f"{_blocks(conf)}: {read} and then {name} read the {tap} "
                       f"that {written} writes, but only the nearest may; put a "
                       f"{written} between them, or drop one")
                return
            read = name
        if tap in writes[name]:
            written, read = name, None


# What C reads

def header(conf):
    """<generated/taps.h>."""
    lines = ["/* Written by scripts/kconfig.py: include/mixer.h says what. */",
             "#define TAPS(TAP)"]
    for tap in known_taps(conf):
        detached = conf.on(tap.detached_if) if tap.detached_if else tap.detached
        lines[-1] += " \\"
        widths = (shape.value(conf, w) for w in (tap.width, tap.step_width))
        lines.append(f"\tTAP({tap.name}, {tap.type}, "
                     f"{', '.join(map(str, widths))}, {int(detached)})")
    for block in conf.decl.blocks.values():
        if conf.on(block.symbol):
            lines += [f"#define {block.name}_TAPS_{past} "
                      + _mask(conf, ends(conf, block.name, verb))
                      for verb, past in (("reads", "READ"),
                                         ("writes", "WRITTEN"))]
    return "\n".join(lines) + "\n"


def _mask(conf, names):
    """The bits of some taps."""
    bits = [f"1u << TAP_{tap.name}" for tap in conf.decl.taps
            if tap.name in names]
    return f"({' | '.join(bits)})" if bits else "0"
