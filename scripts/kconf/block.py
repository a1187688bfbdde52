# SPDX-License-Identifier: MIT
"""BLOCK in the interfaces: it follows the model, and fits the mixers that are on.

A file says what it says; but who changes the model or a mixer in a menu is not
to write by hand what follows from it. The strings offered are made from the
`block-x` declarations, so that a new mixer is among them.
"""

import itertools

from . import stack

ALT = ("BLOCK_ALT", "BLOCK_ALT_LAYERS")
# What else has a default that depends on the model.
FOLLOW = ("LEARNED_POSITIONS", "HEAD_TIED", "LINEAR_BIAS", "MHA_ROPE")


def describe(conf):
    """The names that BLOCK may hold, a line each, for its help."""
    lines = []
    for block in conf.decl.blocks.values():
        words = conf.syms[block.symbol].nodes[0].prompt[0]
        lines.append(f"  {block.name:8} {words.removeprefix(block.name + ': ')}")
    return "Names in this tree:\n" + "\n".join(lines)


def model_changed(conf):
    """Mixers, BLOCK and the stack become those of the model that was chosen."""
    for block in conf.decl.blocks.values():
        conf.syms[block.symbol].unset_value()
    for name in ("BLOCK", *FOLLOW):
        conf.syms[name].unset_value()
    conf.syms["NORM_RMSNORM"].choice.unset_value()
    for name in ALT:
        conf.syms[name].set_value("")


def is_model(conf, sym):
    """Whether a symbol is a member of the choice that BLOCK's default follows."""
    return sym in conf.syms["MODEL_GPT2"].choice.syms


def is_mixer(conf, sym):
    """Whether a symbol turns a name of BLOCK on or off."""
    return sym.name in (block.symbol for block in conf.decl.blocks.values())


def fits(conf):
    """Whether the blocks name what is on and nothing else."""
    named = {word for name in stack.NAMES for word in conf.value(name).split()}
    return named == set(_on(conf))


def own(conf):
    """Whether BLOCK is none of the strings that follow from what is on."""
    return bool(conf.value(ALT[0])) or \
        conf.value("BLOCK") not in _strings(_names(conf), conf)


def offers(conf):
    """Strings for BLOCK that name what is on; those alone that the rules allow,
    if there are any."""
    found = _strings(_names(conf), conf)
    legal = [text for text in found if not objections(conf, text)]
    return legal or found


def objections(conf, text):
    """What the rules of the stack say to a string for BLOCK."""
    sym = conf.syms["BLOCK"]
    before = sym.user_value
    sym.set_value(text)
    found = stack.violations(conf)
    if before is None:
        sym.unset_value()
    else:
        sym.set_value(before)
    return found


def _on(conf):
    """Names of the mixers that are on, as declared."""
    return [b.name for b in conf.decl.blocks.values() if conf.on(b.symbol)]


def _names(conf):
    """What BLOCK is to name: all that is on but what BLOCK_ALT alone names."""
    alone = set(conf.value("BLOCK_ALT").split()) - set(conf.value("BLOCK").split())
    return [name for name in _on(conf) if name not in alone]


def _strings(names, conf):
    """The names in turn, a token mixer and a channel mixer; the same from the last
    token mixer to the first; all token mixers before all channel mixers."""
    token, channel = ([n for n in names if conf.decl.blocks[n].symbol.startswith(kind)]
                      for kind in ("MIXER_", "MLP_"))
    found = [_in_turn(token, channel), _in_turn(token[::-1], channel[::-1]), token + channel]
    return list(dict.fromkeys(" ".join(words) for words in found if words))


def _in_turn(token, channel):
    """Both lists in turn; the shorter one goes on with its last name."""
    if not token or not channel:
        return token + channel
    pairs = itertools.zip_longest(token, channel)
    return [word for a, b in pairs for word in (a or token[-1], b or channel[-1])]
