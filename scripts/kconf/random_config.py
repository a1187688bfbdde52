# SPDX-License-Identifier: MIT
"""randconfig: a random legal configuration, the same for the same seed.

BLOCK is drawn first and its mixers enabled; then every switch, choice and
number that is open. Numbers are drawn from what the Kconfig files declare as
try-X, so that a result builds and runs in seconds; a symbol without keeps its
default. What breaks a rule is thrown away and drawn again.
"""

import random

import kconfiglib

from . import rules
from .declare import ConfigError

ATTEMPTS = 1000


def randomise(conf, seed):
    """Replace all values of a configuration."""
    draw = random.Random(seed)
    for _ in range(ATTEMPTS):
        conf.unset_values()
        _draw_block(conf, draw)
        for node in conf.node_iter(unique_syms=True):
            _draw_node(conf, draw, node)
        _draw_layers(conf, draw)
        if not rules.violations(conf):
            return
    raise ConfigError(f"randconfig {seed}: no legal configuration in "
                      f"{ATTEMPTS} attempts")


def _draw_block(conf, draw):
    """A few names; what is named is enabled, everything else off."""
    words = _draw_names(conf, draw)
    other = _draw_names(conf, draw) if draw.random() < 0.3 else []
    conf.syms["BLOCK"].set_value(" ".join(words))
    conf.syms["BLOCK_ALT"].set_value(" ".join(other))
    conf.syms["BLOCK_ALT_LAYERS"].set_value("")
    for block in conf.decl.blocks.values():
        conf.syms[block.symbol].set_value(
            "y" if block.name in words + other else "n")


def _draw_names(conf, draw):
    """Mostly pairs of a token and a channel mixer, where mechanisms can act."""
    names = sorted(conf.decl.blocks)
    kinds = [[n for n in names if conf.decl.blocks[n].symbol.startswith(kind)]
             for kind in ("MIXER_", "MLP_")]
    if draw.random() < 0.8:
        return [draw.choice(kind) for kind in kinds * draw.randint(1, 2)]
    return [draw.choice(names) for _ in range(draw.randint(1, 4))]


def _draw_layers(conf, draw):
    """Which layers are BLOCK_ALT, where there is one: some, but not all."""
    layers = range(conf.number("N_LAYER"))
    if conf.value("BLOCK_ALT") and len(layers) > 1:
        picked = sorted(draw.sample(layers, draw.randint(1, len(layers) - 1)))
        conf.syms["BLOCK_ALT_LAYERS"].set_value(",".join(map(str, picked)))


def _draw_node(conf, draw, node):
    item = node.item
    if item.__class__ is kconfiglib.Choice and item.visibility:
        open_members = [s for s in item.syms
                        if s.visibility and _tries(conf, s) != ["n"]]
        if "GPT2_MODEL_CUSTOM" in (s.name for s in open_members):
            open_members = [conf.syms["GPT2_MODEL_CUSTOM"]]   # tiny widths
        draw.choice(open_members).set_value("y")
    elif item.__class__ is kconfiglib.Symbol and item.visibility \
            and not item.choice and item.user_value is None:
        values = _tries(conf, item)
        if values:
            item.set_value(draw.choice(values))


def _tries(conf, sym):
    """What a symbol may be drawn from; empty to leave it alone."""
    values = conf.decl.tries.get(sym.name)
    if values is None and sym.orig_type == kconfiglib.BOOL:
        return ["n", "y"]
    return values or []
