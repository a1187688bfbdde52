# SPDX-License-Identifier: MIT
"""A Kconfig tree whose files show modes as words, and are checked strictly.

The word of a mode is the one truth in a file: members of such a choice are not
written, and a line with the word selects its member. Everything that reads or
writes files comes through here, menuconfig included.
"""

import errno
import os

import kconfiglib

from . import block, lines, strict
from .declare import ConfigError, Declarations

HEADER = """\
#
# Tenon configuration, written by scripts/kconfig.py. A hand edit takes effect
# with the next make; Documentation/configuration.md has the rules.
#
"""


class Config(kconfiglib.Kconfig):
    """kconfiglib.Kconfig with Tenon's file format."""

    def __init__(self, filename="Kconfig"):
        super().__init__(filename)
        self.warn = False       # about assignments: strict.py says it better
        self.decl = Declarations(self)
        self.notes = []         # lines for stderr
        self.bare = set()       # reals that the last file shows unquoted
        self.named = set()      # symbols that the files loaded last name
        self.files = []         # those files
        self.origin = {}        # symbol name -> its last line in them
        self.syms["BLOCK"].nodes[0].help += "\n\n" + block.describe(self)

    # Loading

    def load(self, paths, bases=0):
        """Replace all values by those of files, later ones on top.

        The first ones are what the next is based on, and make nothing moot that
        is worth a note. Raises ConfigError with every line that cannot take
        effect.
        """
        self.unset_values()
        self.bare.clear()
        self.notes.clear()
        self.files = list(paths)
        self.origin.clear()
        merged = []
        for path in paths:
            own = _last(lines.parse(self, path))
            for line in own.values():
                self._apply(line)
            strict.check(self, own)
            merged.append(own)
            self.origin.update((sym.name, line) for sym, line in own.items())
        strict.check_overridden(self, merged, bases)
        self.named = {sym.name for own in merged for sym in own}
        for sym in filter(self.decl.derived, self.unique_defined_syms):
            if sym.str_value:
                sym.set_value(sym.str_value)        # for menuconfig's Save

    def place(self, names):
        """Where to mend one of these symbols: file:line of the last file that
        sets one, else the files; '' without files."""
        own = [self.origin[name] for name in names if name in self.origin]
        if not own:
            return " + ".join(self.files)
        line = max(own, key=lambda one: self.files.index(one.file))
        return f"{line.file}:{line.number}"

    def load_config(self, filename=None, replace=True, verbose=None):
        """kconfiglib's entry point, for menuconfig and guiconfig."""
        filename = filename or kconfiglib.standard_config_filename()
        if not os.path.exists(filename):
            return f"{filename} does not exist yet: starting from the defaults"
        try:
            self.load([filename])
        except ConfigError as error:    # menuconfig shows an OSError
            raise OSError(errno.EINVAL, str(error)) from None
        return f"Loaded {filename}"

    def _apply(self, line):
        sym, value = line.symbol, line.value
        (self.bare.add if line.bare else self.bare.discard)(sym.name)
        if sym in self.decl.modes:
            sym.set_value(value)        # as written, for menuconfig's Save
            sym = self.decl.modes[sym].members[value]
            value = "y"
        if sym.choice and value == "y":
            for member in sym.choice.syms:
                member.set_value("n")   # decided: oldconfig need not ask
        elif sym.choice and sym.choice.user_selection is sym:
            sym.choice.unset_value()
        sym.set_value(value)

    # Values

    def value(self, name):
        """The value of a symbol as text, '' where it has none."""
        return self.syms[name].str_value

    def number(self, name):
        """The value of an int symbol, 0 where it has none."""
        return int(self.value(name) or 0)

    def on(self, name):
        """Whether a bool symbol is y."""
        return self.syms[name].tri_value > 0

    # Writing

    def line(self, sym):
        """The line of a symbol in a file, with newline; '' for none."""
        if sym in self.decl.mode_of_member or self.decl.derived(sym):
            return ""
        text = sym.config_string
        if text and sym.name in self.bare:
            return f"CONFIG_{sym.name}={sym.str_value}\n"
        return text

    def text(self):
        """The whole .config."""
        return HEADER + "".join(self._menu(self.top_node.list))

    def _menu(self, node):
        out = []
        while node:
            if isinstance(node.item, kconfiglib.Symbol):
                out.append(self.line(node.item))
            inner = self._menu(node.list) if node.list else []
            if node.item is kconfiglib.MENU and any(inner):
                out.append(f"\n#\n# {node.prompt[0]}\n#\n")
            out += inner
            node = node.next
        return out

    def minimal_text(self):
        """The lines that differ from the defaults, if only in spelling.

        RUN_NAME always, or loading would name the run after the file.
        """
        return "".join(map(self._minimal_line, self.unique_defined_syms))

    def _minimal_line(self, sym):
        mode = self.decl.modes.get(sym)
        choice = mode.choice if mode else sym.choice
        if choice:
            picked = choice.selection
            new = picked and picked is not choice._selection_from_defaults()
            return self.line(sym) if new and (mode or picked is sym) else ""
        if not sym.visibility:
            return ""
        new = sym.str_value != sym._str_default() or sym.name in self.bare \
            or sym.name == "RUN_NAME"
        return self.line(sym) if new else ""

    def write_config(self, filename=None, header=None, save_old=True,
                     verbose=None):
        """Write the .config, atomically, unless it would not change."""
        filename = filename or kconfiglib.standard_config_filename()
        if write_if_changed(filename, self.text()):
            return f"Saved {filename}"
        return f"No change to {filename}"

    def write_min_config(self, filename, header=None):
        """Write a defconfig."""
        title = f"# {self.value('RUN_NAME')}, as savedefconfig wrote it\n"
        write_if_changed(filename, title + self.minimal_text())
        return f"Saved {filename}"


def _last(parsed):
    """symbol -> its last line, in file order; weak lines yield."""
    strong = {line.symbol for line in parsed if not line.weak}
    own = {}
    for line in parsed:
        if not (line.weak and line.symbol in strong):
            own.pop(line.symbol, None)
            own[line.symbol] = line
    return own


def write_if_changed(path, text):
    """Replace a file by text in one step; False if it already has it."""
    data = text.encode()
    try:
        with open(path, "rb") as file:
            if file.read() == data:
                return False
    except OSError:
        pass
    path = os.path.realpath(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise ConfigError(f"{path}: {error.strerror}") from None
    return True
