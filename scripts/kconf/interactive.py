# SPDX-License-Identifier: MIT
"""The interactive front ends of kconfiglib on Tenon's configuration."""

import os
import sys
import textwrap

import kconfiglib

from . import block
from .declare import ConfigError


def menuconfig(conf):
    """The terminal interface."""
    import curses
    import menuconfig as front
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("menuconfig needs a terminal; edit the file, or use "
                          "fragments and `make olddefconfig`")
    original, alert, key = front._check_valid, front._error, front._getch_compat

    def pressed(window):
        found = key(window)
        if found == -1 and not sys.stdin.isatty():      # where SIGHUP was ignored
            raise ConfigError("menuconfig: the terminal is gone; nothing was saved")
        return found

    front._getch_compat = pressed

    def check(sym, text):
        problem = _problem(conf, sym, text)
        if problem:
            alert(problem)
        return not problem and original(sym, text)

    front._check_valid = check
    _follow(front, conf, _ask(front, conf), front._update_menu)
    _offer_block(front, conf)
    try:
        front.menuconfig(conf)
    except curses.error as error:
        raise ConfigError(f"menuconfig: {error}; set TERM to what the terminal "
                          "is, for instance xterm") from None


def guiconfig(conf):
    """The Tk interface."""
    try:
        import guiconfig as front
    except ImportError as error:
        raise ConfigError(f"guiconfig needs Tk for Python ({error}); install "
                          "python3-tk, or use `make menuconfig`") from None
    original = front._check_valid

    def check(dialog, entry, sym, text):
        problem = _problem(conf, sym, text)
        if problem:
            front.messagebox.showerror("Invalid value", problem, parent=dialog)
        return not problem and original(dialog, entry, sym, text)

    front._check_valid = check
    _follow(front, conf, lambda why, texts: texts[0], front._update_tree)
    try:
        front.menuconfig(conf)
    except front.TclError as error:
        raise ConfigError(f"guiconfig: {error}; use `make menuconfig`"
                          ) from None


# BLOCK, which follows what is changed in a menu

def _follow(front, conf, choose, redraw):
    """Let changes of the model and of mixers reach BLOCK.

    choose(why, texts) gives one of the texts, or None to leave BLOCK alone.
    """
    original = front._set_val

    def set_value(item, value):
        own, before = block.own(conf), item.str_value
        original(item, value)
        if item.str_value == before or not isinstance(item, kconfiglib.Symbol):
            return
        if block.is_model(conf, item):
            _model(conf, choose if own else None)
        elif block.is_mixer(conf, item) and not block.fits(conf):
            _take(conf, choose(f'CONFIG_BLOCK="{conf.value("BLOCK")}" does not fit what is on.',
                               block.offers(conf)))
        redraw()

    front._set_val = set_value


def _model(conf, choose):
    """Another model was chosen; a BLOCK of the user's own is not given up unasked."""
    mine = conf.value("BLOCK")
    names = ["BLOCK", *block.ALT, *(b.symbol for b in conf.decl.blocks.values())]
    before = {name: conf.syms[name].user_value for name in names}
    block.model_changed(conf)
    theirs = conf.value("BLOCK")
    if choose and not choose(f'CONFIG_BLOCK="{mine}" is your own; take that of the model?',
                             [theirs]):
        for name, value in before.items():
            if value is not None:
                conf.syms[name].set_value(kconfiglib.TRI_TO_STR.get(value, value))


def _take(conf, text):
    """Give BLOCK a string that was chosen, if one was."""
    if text:
        conf.syms["BLOCK"].set_value(text)


def _ask(front, conf):
    """A dialog of menuconfig that offers strings for BLOCK."""
    def choose(why, texts):
        shown = {str(i): text for i, text in enumerate(texts, 1)}
        lines = [why, ""] + [f"  {key}  {text}" for key, text in shown.items()]
        lines += ["  c  custom: leave BLOCK to me"]
        for reason in block.objections(conf, texts[0])[:1]:
            lines += ["", *textwrap.wrap(reason, 70)]
        return shown.get(front._key_dialog("Block", "\n".join(lines), [*shown, "c"]))
    return choose


def _offer_block(front, conf):
    """Enter on BLOCK shows what fits before it lets a string be typed."""
    original, ask = front._change_node, _ask(front, conf)

    def change(node):
        if node.item is not conf.syms["BLOCK"] or not block.offers(conf):
            return original(node)
        text = ask("What fits the mixers that are on:", block.offers(conf))
        if text:
            front._set_val(node.item, text)
            return True
        return original(node)

    front._change_node = change


def oldconfig(conf):
    """Ask on the terminal for every open symbol that has no line."""
    import oldconfig as front
    front.conf_changed = True
    try:
        while front.conf_changed:
            front.conf_changed = False
            for node in conf.node_iter():
                front.oldconfig(node)
                while refused := _refused(conf, node.item):
                    print(refused)
                    node.item.unset_value()
                    front.oldconfig(node)
    except EOFError:
        raise ConfigError("oldconfig: the input ended before the questions "
                          "did; `make olddefconfig` takes the defaults"
                          ) from None


def new_lines(conf):
    """The lines of open symbols that the file does not decide."""
    for sym in conf.unique_defined_syms:
        mode = conf.decl.modes.get(sym)
        choice = mode.choice if mode else sym.choice
        if not conf.line(sym):
            continue
        if choice:
            open_ = choice.visibility and not choice.user_selection and \
                (mode or choice.selection is sym)
        else:
            open_ = sym.visibility and sym.user_value is None
        if open_:
            yield conf.line(sym).rstrip("\n")


def _problem(conf, sym, text):
    """What is wrong with a real typed into an interface, or None."""
    interval = conf.decl.reals.get(sym.name)
    return interval.problem(text) if interval else None


def _refused(conf, item):
    """Why a value just typed cannot stay, or None; kconfiglib lets reals of
    any form pass, and replaces an int out of range by the default."""
    if not isinstance(item, kconfiglib.Symbol) or not item.visibility \
            or item.user_value is None:
        return None
    if item.orig_type == kconfiglib.INT and item.str_value != item.user_value:
        return f"{item.user_value} is out of range (? shows it)"
    return _problem(conf, item, item.str_value)


def use_file(path):
    """Tell the interfaces which file they work on."""
    os.environ["KCONFIG_CONFIG"] = path
