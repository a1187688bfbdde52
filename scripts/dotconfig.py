# SPDX-License-Identifier: MIT
"""Read a .config that scripts/kconfig.py has written or accepted."""
import re


class DotConfig:
    """y() a bool, i() an int, f() a real, s() a string; 0 or "" without a value."""

    def __init__(self, text):
        self.values = {}
        for line in text.splitlines():
            if line.startswith("CONFIG_") and "=" in line:
                name, value = line[len("CONFIG_"):].split("=", 1)
                self.values[name] = re.sub(r"\\(.)", r"\1", value.strip()[1:-1]) \
                    if value.startswith('"') else value.strip()

    @classmethod
    def load(cls, path):
        with open(path, encoding="utf-8") as f:
            return cls(f.read())

    def y(self, name):
        return self.values.get(name) == "y"

    def s(self, name):
        return self.values.get(name, "")

    def i(self, name):
        return int(self.s(name) or 0)

    def f(self, name):
        return float(self.s(name) or 0)
