# SPDX-License-Identifier: MIT
"""The interactive front ends of kconfiglib on Tenon's configuration."""

import os
import sys

import kconfiglib

from .declare import ConfigError


def menuconfig(conf):
    """The terminal interface."""
    import curses
    import menuconfig as front
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("menuconfig needs a terminal; edit the file, or use "
                          "fragments and `make olddefconfig`")
    original, alert = front._check_valid, front._error

    def check(sym, text):
        problem = _problem(conf, sym, text)
        if problem:
            alert(problem)
        return not problem and original(sym, text)

    front._check_valid = check
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
    try:
        front.menuconfig(conf)
    except front.TclError as error:
        raise ConfigError(f"guiconfig: {error}; use `make menuconfig`"
                          ) from None


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
