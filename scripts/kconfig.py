#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The configuration of a tree: reads, checks, changes and writes it.

    kconfig.py --config FILE --gen DIR VERB [ARGUMENTS]

Runs from the top of the sources. Errors are one line each on stderr, with
exit status 2, and leave every file as it was.
"""

import argparse
import difflib
import os
import re
import subprocess
import sys

try:
    import kconfiglib
except ImportError:
    sys.exit("kconfig.py: this Python has no kconfiglib; by hand, run it with the Python of the "
             "build: $(sh scripts/python.sh) scripts/kconfig.py")

from kconf import explain, header, interactive, lines, random_config, rules
from kconf.config import Config, write_if_changed
from kconf.declare import ConfigError
from plain import plain

FOLDER = "defconfigs"
VERBS = {}


def verb(function):
    """Register a verb under the name of its function."""
    VERBS[function.__name__.removeprefix("do_")] = function
    return function


# Files

def defconfig_names():
    """The names that defconfig takes, in order."""
    return sorted(n for n in os.listdir(FOLDER) if not n.endswith(".config"))


def find_file(name, suffix):
    """A path as it stands, or a name looked up in defconfigs/."""
    names = sorted(n for n in os.listdir(FOLDER)
                   if n.endswith(".config") == bool(suffix))
    for candidate in (name + suffix, name):
        if candidate in names:
            return os.path.join(FOLDER, candidate)
    if os.path.isfile(name):
        return name
    close = difflib.get_close_matches(name, names, 1) or \
        difflib.get_close_matches(name + suffix, names, 1)
    hint = f"did you mean {close[0]}?" if close else "`make list-defconfigs`"
    raise ConfigError(f"{name}: no such file, and not in {FOLDER}/; {hint}")


def with_bases(path):
    """A defconfig behind those that it is based on, the first one first."""
    chain = [path]
    while name := lines.base(chain[0]):
        try:
            below = find_file(name, "")
        except ConfigError as error:
            raise ConfigError(f"{chain[0]}:1: base: {error}") from None
        if any(os.path.samefile(below, one) for one in chain):
            raise ConfigError(f"{chain[0]}:1: base: {name} is itself based on "
                              "this file")
        chain.insert(0, below)
    return chain


def load(args, *more):
    """The configuration of FILE with more files on top, fully checked."""
    if not os.path.exists(args.config):
        raise ConfigError(listing(args.config))
    return load_files([args.config, *more])


def load_files(paths, bases=()):
    """A configuration from files, checked, with its notes printed."""
    conf = Config()
    conf.load([*bases, *paths], len(bases))
    rules.check(conf)
    print_notes(conf)
    return conf


def print_notes(conf):
    """What the last files said without effect."""
    for note in conf.notes:
        print(f"note: {note}", file=sys.stderr)


def save(args, conf):
    """Write FILE and say so where it changed."""
    if write_if_changed(args.config, conf.text()):
        tree = os.path.dirname(args.config)
        make = f"make O={tree}" if tree else "make"
        print(f"  CONFIG  {args.config} (what it takes: {make} plan)")


def save_anew(args, conf):
    """The same for what does not come from FILE, which is kept as FILE.old."""
    text = conf.text()
    try:
        with open(args.config, encoding="utf-8") as file:
            before = file.read()
    except (FileNotFoundError, UnicodeDecodeError):
        before = ""
    if before not in ("", text) and before != as_loaded(before):
        write_if_changed(args.config + ".old", before)
        print(f"  CONFIG  {args.config}.old (what {args.config} was)")
    save(args, conf)


def as_loaded(text):
    """What the defconfig that a .config is named after gives without a change."""
    name = re.search(r'^CONFIG_RUN_NAME="(.*)"$', text, re.M)
    if not name or name[1] not in defconfig_names():
        return None
    path = os.path.join(FOLDER, name[1])
    plain = Config()
    plain.load([*with_bases(path)])
    plain.syms["RUN_NAME"].set_value(name[1])
    return plain.text()


def asked(args, conf):
    """The symbol that a verb was given, by any of its names."""
    if len(args.arguments) != 1:
        raise ConfigError(f"{args.verb} needs one symbol")
    name = args.arguments[0].removeprefix("CONFIG_")
    name = conf.decl.aliases.get(name, [name])[0]
    if name not in conf.syms or not conf.syms[name].nodes:
        close = difflib.get_close_matches(name, [s.name for s in conf.unique_defined_syms], 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"{args.verb}: there is no symbol CONFIG_{name}{hint}")
    return conf.syms[name]


def listing(*missing):
    """The defconfigs in words, or what to do about a .config that is missing."""
    command = ["sh", "scripts/list-defconfigs.sh", *missing]
    return subprocess.run(command, check=True, text=True,
                          stdout=subprocess.PIPE).stdout.rstrip("\n")


# Verbs

@verb
def do_sync(args):
    """write the generated files of DIR, and FILE in its normal form"""
    conf = load(args)
    write_if_changed(args.config, conf.text())
    header.sync(conf, args.gen)


@verb
def do_defconfig(args):
    """NAME [FRAGMENT...]: start from a defconfig with fragments on top"""
    if not args.arguments:
        raise ConfigError(f"defconfig needs a name:\n{listing()}")
    name, *fragments = args.arguments
    paths = [find_file(name, "")] + [find_file(f, ".config") for f in fragments]
    for fragment in paths[1:]:
        if lines.base(fragment):
            raise ConfigError(f"{fragment}:1: a fragment goes on top of what "
                              "make is told; only a defconfig has a base")
    conf = load_files(paths, with_bases(paths[0])[:-1])
    if "RUN_NAME" not in conf.named:
        names = (os.path.basename(path) for path in paths)
        conf.syms["RUN_NAME"].set_value(
            "-".join(n.removesuffix(".config") for n in names))
        rules.check(conf)
    save_anew(args, conf)


@verb
def do_merge(args):
    """FRAGMENT...: put fragments on top of FILE"""
    if not args.arguments:
        raise ConfigError(f"merge needs a fragment of {FOLDER}/ or a path")
    save(args, load(args, *(find_file(f, ".config") for f in args.arguments)))


def edit(args, interface):
    """Let an interface work on FILE, then check what it saved."""
    interactive.use_file(args.config)
    conf = Config()
    if os.path.exists(args.config):
        conf.load([args.config])
        print_notes(conf)
    interface(conf)
    if os.path.exists(args.config):
        load_files([args.config])


@verb
def do_menuconfig(args):
    """change FILE in a terminal interface"""
    edit(args, interactive.menuconfig)


@verb
def do_guiconfig(args):
    """change FILE in a window"""
    edit(args, interactive.guiconfig)


@verb
def do_oldconfig(args):
    """ask for every symbol that FILE does not decide"""
    conf = Config()
    if os.path.exists(args.config):
        conf.load([args.config])
        print_notes(conf)
    interactive.oldconfig(conf)
    rules.check(conf)
    save(args, conf)


@verb
def do_olddefconfig(args):
    """take the default for every symbol that FILE does not decide"""
    save(args, load(args))


@verb
def do_listnewconfig(args):
    """print the lines that olddefconfig would add"""
    for line in interactive.new_lines(load(args)):
        print(line)


@verb
def do_alldefconfig(args):
    """every symbol at its default"""
    conf = Config()
    rules.check(conf)
    save_anew(args, conf)


@verb
def do_allnoconfig(args):
    """every switch off that the rules let go"""
    conf = Config()
    for sym in conf.unique_defined_syms:
        if sym.orig_type == kconfiglib.BOOL and sym.visibility \
                and not sym.choice:
            sym.set_value("n")
            if rules.violations(conf):
                sym.unset_value()
    save_anew(args, conf)


@verb
def do_randconfig(args):
    """[SEED]: a random legal configuration"""
    text = args.arguments[0] if args.arguments else \
        str(int.from_bytes(os.urandom(4), "little"))
    if not text.isdecimal():
        raise ConfigError(f"randconfig: seed '{text}' is not a whole number")
    conf = Config()
    random_config.randomise(conf, int(text))
    conf.syms["RUN_NAME"].set_value(f"randconfig-{int(text)}")
    print(f"randconfig {int(text)}")
    save_anew(args, conf)


@verb
def do_savedefconfig(args):
    """write `defconfig` beside FILE: only what differs from the defaults"""
    conf = load(args)
    path = os.path.join(os.path.dirname(args.config), "defconfig")
    conf.write_min_config(path)
    print(f"  CONFIG  {path}")


@verb
def do_list(_args):
    """list the defconfigs"""
    print(listing())


@verb
def do_get(args):
    """SYMBOL: print its value"""
    conf = load(args)
    print(asked(args, conf).str_value)


@verb
def do_explain(args):
    """SYMBOL: its value, where that is from, what it depends on and touches"""
    conf = load(args)
    sym = asked(args, conf)
    begun = Config()
    if conf.value("RUN_NAME") in defconfig_names():
        begun.load(with_bases(os.path.join(FOLDER, conf.value("RUN_NAME"))))
    print(f"CONFIG_{sym.name}")
    for tag, words in explain.explain(conf, sym, args.gen, begun.origin):
        print(f"  {tag:12} {words}")
    print("\n" + sym.nodes[0].help.rstrip())


@verb
def do_diff(args):
    """OLD NEW: print the symbols that differ between two files"""
    if len(args.arguments) != 2:
        raise ConfigError("diff needs two files")
    old, new = map(plain_values, args.arguments)
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, "n"), new.get(name, "n")
        if not same(before, after):
            print(f"CONFIG_{name}: {before} -> {after}")


def plain_values(path):
    """name -> value of a file that another version may have written."""
    values = {}
    for text in map(str.strip, lines.read(path)):
        unset = lines.UNSET.fullmatch(text)
        assign = lines.ASSIGN.fullmatch(text)
        if unset:
            values[unset[1]] = "n"
        elif assign:
            values[assign[1]] = assign[2]
    return values


def same(before, after):
    """Whether two values are equal, reals in any spelling included."""
    if before == after:
        return True
    try:
        return float(before.strip('"')) == float(after.strip('"'))
    except ValueError:
        return False


def parse_arguments(argv):
    """The command line."""
    width = max(map(len, VERBS)) + 2
    parser = argparse.ArgumentParser(
        prog="kconfig.py", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="verbs:\n" + "\n".join(
            f"  {name:{width}}{function.__doc__}"
            for name, function in VERBS.items()))
    parser.add_argument("--config", metavar="FILE", default=".config")
    parser.add_argument("--gen", metavar="DIR", default="build")
    parser.add_argument("verb", choices=VERBS, metavar="VERB")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT")
    return parser.parse_args(argv)


def main(argv):
    """Run one verb; the exit status."""
    args = parse_arguments(argv)
    os.environ.pop("srctree", None)     # kconfiglib would look there
    try:
        VERBS[args.verb](args)
    except ConfigError as error:
        for message in error.messages:
            print("error: " + "\n".join(map(plain, message.split("\n"))), file=sys.stderr)
        return 2
    except kconfiglib.KconfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    except OSError as error:
        print(plain(f"error: {error.filename}: {error.strerror}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
