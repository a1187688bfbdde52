# SPDX-License-Identifier: MIT
"""Text as a terminal may see it: names of files may hold anything."""


def plain(text):
    """Control characters and bytes that are no UTF-8 as \\n, \\x1b; one line."""
    names = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return "".join(
        c if c.isprintable() else names.get(c) or
        "".join(f"\\x{b:02x}" for b in c.encode("utf-8", "surrogateescape")) for c in text)
