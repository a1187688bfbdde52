# SPDX-License-Identifier: MIT
"""Rules between symbols, which Kconfig itself cannot express.

Each rule yields what is wrong, naming symbols, values and the nearest legal
ones. They hold for every configuration that is built; menuconfig may pass
through states that break them.
"""

import math
import re

from . import fragment, shape, stack
from .declare import ConfigError, show

TWINS = {"4": "2", "5": "3"}     # arms that repeat another one
CONTEXTS = 2 ** 20               # of a Markov chain
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
    return [*shape.violations(conf), *stack.violations(conf), *_data(conf),
            *_training(conf), *_study(conf), *_names(conf)]


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
    if conf.on("DATA_MQAR"):
        yield from _mqar(conf, vocabulary)
    if conf.on("DATA_MARKOV"):
        yield from _markov(conf, conf.number("MARKOV_SYMBOLS") or vocabulary)


def _mqar(conf, vocabulary):
    positions = conf.number("BLOCK_SIZE")
    if vocabulary % 2:
        yield (f"{show(conf, 'VOCAB_SIZE')} is odd, but half of it are the keys and half the "
               f"values of CONFIG_DATA_MQAR=y; nearest legal {vocabulary - 1} and "
               f"{vocabulary + 1}")
    if conf.on("MQAR_FORM_ZOOLOGY") and positions % 2:
        yield (f'{show(conf, "BLOCK_SIZE")} is odd, but CONFIG_MQAR_FORM="zoology" fills pairs of '
               f"positions; nearest legal {positions - 1} and {positions + 1}")


def _markov(conf, symbols):
    name = "MARKOV_SYMBOLS" if conf.number("MARKOV_SYMBOLS") else "VOCAB_SIZE"
    order = conf.number("MARKOV_ORDER")
    most = CONTEXTS if order == 1 else math.isqrt(CONTEXTS)
    if symbols < 5:
        yield (f"{show(conf, name)} is too few symbols for the five successors of "
               "CONFIG_DATA_MARKOV=y; nearest legal 5")
    if symbols > most:
        yield (f"{show(conf, name)}: to the power of {show(conf, 'MARKOV_ORDER')} that is more "
               f"than 2^20={CONTEXTS} contexts; nearest legal CONFIG_MARKOV_SYMBOLS={most}")


def _training(conf):
    lowest, highest = conf.value("MIN_LR"), conf.value("LEARNING_RATE")
    if lowest and float(lowest) > float(highest):
        yield (f"CONFIG_MIN_LR={lowest} is above CONFIG_LEARNING_RATE={highest}"
               f"; nearest legal {highest}")
    if conf.number("LR_DECAY_STEPS") > conf.number("MAX_ITERS"):
        yield (f"{show(conf, 'LR_DECAY_STEPS')} is more than "
               f"{show(conf, 'MAX_ITERS')}; nearest legal "
               f"{conf.value('MAX_ITERS')}")


def _study(conf):
    steps = conf.value("RA_MLA_ABLATION_STEPS")
    numbers = steps.split(",")
    if conf.on("RA_MLA_ABLATION_MODE") and (
            not all(re.fullmatch("[0-5]", n) for n in numbers)
            or len(set(numbers)) < len(numbers)):
        legal = sorted(set(re.findall("[0-5]", steps)) or {"0"})
        yield (f'CONFIG_RA_MLA_ABLATION_STEPS="{steps}" is not a comma list of '
               f'different numbers 0 to 5; nearest legal "{",".join(legal)}"')
    elif conf.on("RA_MLA_ABLATION_MODE"):
        whole = sorted({*numbers, *(TWINS[n] for n in numbers if n in TWINS)})
        if len(whole) > len(numbers):
            yield (f'CONFIG_RA_MLA_ABLATION_STEPS="{steps}" lacks an arm that another one '
                   f'repeats; nearest legal "{",".join(whole)}"')
    arms = conf.value("ABLATION_ARMS")
    words = arms.split()
    reason = fragment.problem(words)
    if arms != " ".join(words):
        yield (f'CONFIG_ABLATION_ARMS="{arms}": separate the fragments by one '
               f'space: "{" ".join(words)}"')
    elif reason:
        yield f'CONFIG_ABLATION_ARMS="{arms}": {reason}'


def _names(conf):
    name = conf.value("RUN_NAME")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        near = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).lstrip("._+-") or "tenon"
        yield (f'CONFIG_RUN_NAME="{name}" does not name a folder of runs/; '
               f'letters, digits and . _ + - may stand in it, for instance '
               f'"{near}"')
