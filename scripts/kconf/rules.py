# SPDX-License-Identifier: MIT
"""Rules between symbols, which Kconfig itself cannot express.

Each rule yields what is wrong, naming symbols, values and the nearest legal
ones. They hold for every configuration that is built; menuconfig may pass
through states that break them.
"""

import difflib
import re

from .declare import ConfigError

SYMBOL = re.compile("CONFIG_([A-Z0-9_]+)")


def check(conf):
    """Raise ConfigError with everything that the rules object to.

    An objection stands at the line of the first symbol that it names, of those
    that the last file sets.
    """
    found = violations(conf)
    if found:
        places = (conf.place(SYMBOL.findall(text)) for text in found)
        raise ConfigError([f"{place}: {text}" if place else text
                           for place, text in zip(places, found)])


def violations(conf):
    """All objections, as a list of texts."""
    block = list(_block(conf))
    # Taps mean nothing in a BLOCK that names what is not there.
    taps = [] if block else list(_taps(conf))
    return [*_shape(conf), *block, *taps, *_data(conf), *_training(conf),
            *_names(conf)]


def show(conf, name):
    """CONFIG_X=value."""
    return f"CONFIG_{name}={conf.value(name)}"


# Shapes

def _shape(conf):
    width, heads = conf.number("N_EMBD"), conf.number("N_HEAD")
    if width % heads:
        yield (f"{show(conf, 'N_HEAD')} does not divide {show(conf, 'N_EMBD')};"
               f" nearest that do: {_divisors_near(width, heads)}")
    latent = conf.number("RA_MLA_LATENT_DIM")
    if conf.on("RA_MLA_MLP_TYING_MODE_PER_HEAD_SCALAR") and latent and \
       4 * width % latent:
        yield (f"{show(conf, 'RA_MLA_LATENT_DIM')} does not divide "
               f"4*CONFIG_N_EMBD={4 * width}, as "
               'CONFIG_RA_MLA_MLP_TYING_MODE="per_head_scalar" needs; nearest '
               f"that do: {_divisors_near(4 * width, latent)}")
    yield from _counted(conf, "BATCH_SIZE", "BLOCK_SIZE", "N_HEAD")
    if conf.on("RA_MLA_MLP_CROSS_TOKEN"):
        yield from _counted(conf, "BLOCK_SIZE", "RA_MLA_MLP_SPARSE_K")


def _counted(conf, *names):
    """Rows and list entries are counted in 32 bits."""
    product = 1
    for name in names:
        product *= conf.number(name)
    if product >= 2 ** 31:
        last = max(names, key=conf.number)
        rest = product // conf.number(last)
        yield (f"{', '.join(show(conf, n) for n in names)}: their product "
               f"{product} must be below 2^31={2 ** 31}; for instance "
               f"CONFIG_{last}={(2 ** 31 - 1) // rest}")


def _divisors_near(number, want):
    """The divisors of a number just below and just above a value."""
    divisors = {d for i in range(1, int(number ** 0.5) + 1) if number % i == 0
                for d in (i, number // i)}
    below = max((d for d in divisors if d < want), default=None)
    above = min((d for d in divisors if d > want), default=None)
    return " and ".join(str(d) for d in (below, above) if d)


# BLOCK

def _block(conf):
    blocks, text = conf.decl.blocks, conf.value("BLOCK")
    words = text.split()
    if not words:
        yield ('CONFIG_BLOCK="" names no sub-layer; for instance "mha mlp" or '
               '"ra_mla recip"')
    elif text != " ".join(words):
        yield (f'CONFIG_BLOCK="{text}": separate the names by one space: '
               f'"{" ".join(words)}"')
    meant = set()
    for word in dict.fromkeys(words):
        if word not in blocks:
            close = difflib.get_close_matches(word, blocks, 1)
            meant.update(close)
            yield (f'CONFIG_BLOCK="{text}" names {word}, which does not exist; '
                   + (f"did you mean {close[0]}?" if close else
                      f"there are {', '.join(sorted(blocks))}"))
        elif not conf.on(blocks[word].symbol):
            yield (f'CONFIG_BLOCK="{text}" names {word}, which is off; set '
                   f"CONFIG_{blocks[word].symbol}=y, or drop the name")
    for block in blocks.values():
        if conf.on(block.symbol) and block.name not in meant.union(words):
            yield (f"CONFIG_{block.symbol}=y, but CONFIG_BLOCK=\"{text}\" does "
                   f"not name {block.name}; add it, or set "
                   f"CONFIG_{block.symbol}=n")


# Taps: what crosses from one sub-layer to a later one

def _taps(conf):
    """Objections to who writes and who reads in the stack of all layers."""
    active = [m for m in conf.decl.mechanisms if conf.on(m.symbol)]
    words = conf.value("BLOCK").split()
    # Three repetitions show every neighbourhood of a deeper stack.
    stack = words * min(conf.number("N_LAYER"), 3)
    for mechanism in active:
        for tap in mechanism.taps["reads"]:
            if not _joined(conf, active, stack, tap, reader=mechanism.mixer):
                yield _unjoined(conf, mechanism, tap, words, "writes")
        for tap in mechanism.taps["writes"]:
            if not _joined(conf, active, stack, tap, writer=mechanism.mixer):
                yield _unjoined(conf, mechanism, tap, words, "reads")
    used = dict.fromkeys(tap for m in active for verb in m.taps.values()
                         for tap in verb)
    for tap in used:
        yield from _second_reader(conf, active, stack, tap)


def _ends(conf, active, verb, tap):
    """Names in BLOCK that write or read a tap in this configuration."""
    return ({b.name for b in conf.decl.blocks.values() if tap in b.taps[verb]}
            | {m.mixer for m in active if tap in m.taps[verb]})


def _joined(conf, active, stack, tap, writer=None, reader=None):
    """Whether a writer somewhere in the stack has a later reader."""
    writers = {writer} if writer else _ends(conf, active, "writes", tap)
    readers = {reader} if reader else _ends(conf, active, "reads", tap)
    first = next((i for i, n in enumerate(stack) if n in writers), len(stack))
    return any(name in readers for name in stack[first + 1:])


def _unjoined(conf, mechanism, tap, words, verb):
    """The objection to a mechanism whose other end is missing."""
    partners = [name for name, block in conf.decl.blocks.items()
                if tap in block.taps[verb]]
    mixer, text = mechanism.mixer, conf.value("BLOCK")
    side = "before" if verb == "writes" else "after"
    need = (f'CONFIG_{mechanism.symbol}=y, but in CONFIG_BLOCK="{text}" with '
            f"{show(conf, 'N_LAYER')} nothing {side} {mixer} {verb} {tap}; ")
    if any(name in partners for name in words):
        return need + (f"set CONFIG_N_LAYER=2 or more, or put "
                       f"{partners[0]} {side} {mixer}")
    return need + f"add {' or '.join(partners)} {side} {mixer}"


def _second_reader(conf, active, stack, tap):
    """At most one reader between one writer of a tap and the next."""
    writers = _ends(conf, active, "writes", tap)
    readers = _ends(conf, active, "reads", tap)
    written, read = None, None
    for name in stack:
        if name in readers and written:
            if read:
                yield (f'CONFIG_BLOCK="{conf.value("BLOCK")}": {read} and then '
                       f"{name} read the {tap} that {written} writes, but only "
                       f"the nearest may; put a {written} between them, or "
                       "drop one")
                return
            read = name
        if name in writers:
            written, read = name, None


# Data, training, names

def _data(conf):
    vocabulary = conf.number("VOCAB_SIZE")
    if conf.on("TOKENIZER_BYTES") and vocabulary < 256:
        source = "DATA_TREE" if conf.on("DATA_TREE") else "DATA_TEXT"
        yield (f"{show(conf, 'VOCAB_SIZE')} is too small for the bytes of "
               f"CONFIG_{source}=y; nearest legal 256")
    if conf.on("DATA_SHARDS") and vocabulary > 65536:
        yield (f"{show(conf, 'VOCAB_SIZE')} is too large for the 16-bit tokens "
               "of CONFIG_DATA_SHARDS=y; nearest legal 65536")


def _training(conf):
    lowest, highest = conf.value("MIN_LR"), conf.value("LEARNING_RATE")
    if lowest and float(lowest) > float(highest):
        yield (f"CONFIG_MIN_LR={lowest} is above CONFIG_LEARNING_RATE={highest}"
               f"; nearest legal {highest}")
    if conf.number("LR_DECAY_STEPS") > conf.number("MAX_ITERS"):
        yield (f"{show(conf, 'LR_DECAY_STEPS')} is more than "
               f"{show(conf, 'MAX_ITERS')}; nearest legal "
               f"{conf.value('MAX_ITERS')}")
    steps = conf.value("RA_MLA_ABLATION_STEPS")
    numbers = steps.split(",")
    if conf.on("RA_MLA_ABLATION_MODE") and (
            not all(re.fullmatch("[0-5]", n) for n in numbers)
            or len(set(numbers)) < len(numbers)):
        legal = sorted(set(re.findall("[0-5]", steps)) or {"0"})
        yield (f'CONFIG_RA_MLA_ABLATION_STEPS="{steps}" is not a comma list of '
               f'different numbers 0 to 5; nearest legal "{",".join(legal)}"')


def _names(conf):
    name = conf.value("RUN_NAME")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        near = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).lstrip("._+-") or "tenon"
        yield (f'CONFIG_RUN_NAME="{name}" does not name a folder of runs/; '
               f'letters, digits and . _ + - may stand in it, for instance '
               f'"{near}"')
