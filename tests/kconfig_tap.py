# SPDX-License-Identifier: MIT
"""What the tests of the configuration share. Run from the top of the sources.

Cases run kconfig.py inside the test's process, on files of a temporary folder.
"""

import contextlib
import io
import os
import re
import sys
import tempfile

SYSTEM_PYTHON = "/usr/bin/python3"
try:
    import kconfiglib                   # noqa: F401
except ImportError:
    if sys.executable == SYSTEM_PYTHON:
        print("Bail out! kconfiglib is missing; run `make setup`")
        sys.exit(1)
    os.execv(SYSTEM_PYTHON, [SYSTEM_PYTHON, *sys.argv])

sys.path.insert(0, "scripts")
import kconfig                          # noqa: E402
import shells                           # noqa: E402, F401
from kconf import block                 # noqa: E402, F401

DIR = tempfile.TemporaryDirectory()
CONFIG = os.path.join(DIR.name, ".config")
FRAGMENT = os.path.join(DIR.name, "f.config")
TINY = "tiny-ra-mla-full"
COUNT = [0]


def ok(condition, name, *details):
    """One line of TAP."""
    COUNT[0] += 1
    print(("" if condition else "not ") + f"ok {COUNT[0]} - {name}")
    if not condition:
        for detail in details:
            print("# " + str(detail).rstrip().replace("\n", "\n# "))


# The tool

def run(*argv):
    """(status, stdout, stderr) of kconfig.py."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = kconfig.main(["--config", CONFIG, "--gen", DIR.name, *argv])
    return status, out.getvalue(), err.getvalue()


def slurp(path):
    """The text of a file below the temporary folder."""
    with open(os.path.join(DIR.name, path), encoding="utf-8") as file:
        return file.read()


def write(path, text):
    """Write a file."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def shows(*wanted):
    """Whether .config has every one of these lines."""
    return set(wanted) <= set(slurp(".config").splitlines())


def defines(*wanted):
    """Whether autoconf.h has every one of these definitions."""
    lines = slurp("include/generated/autoconf.h").splitlines()
    return {"#define CONFIG_" + text for text in wanted} <= set(lines)


def with_lines(text, base=TINY):
    """Load a defconfig with a fragment of these lines on top."""
    write(FRAGMENT, text)
    return run("defconfig", base, FRAGMENT)


def edit(old, new):
    """Hand edit .config."""
    text = slurp(".config")
    assert re.search(old, text), old
    write(CONFIG, re.sub(old, new, text))


def main(names):
    """Run every test_ function of a script, in order."""
    for name, function in list(names.items()):
        if name.startswith("test_"):
            function()
    print(f"1..{COUNT[0]}")
