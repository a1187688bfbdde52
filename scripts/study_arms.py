# SPDX-License-Identifier: MIT
"""The words of ARMS.

    ARMS   = word { blank word }
    word   = term { "+" term }              all together: a product where terms have values
    term   = fragment | number | base | SYMBOL=value{,value}

A number is an arm of the published study, "base" what the others go on top of; both stand
alone. Double quotes keep blanks,
commas and plus signs of a value together: BLOCK="mha mlp","mha swiglu".
"""
import itertools
import re

import study
from kconf import fragment
from study import Entry, StudyError

ASSIGN = re.compile(r"(?:CONFIG_)?([A-Z][A-Z0-9_]*)=(.*)", re.S)
NUMBER = re.compile("[0-9]+")
BARE = re.compile(r"y|n|[+-]?[0-9.]+(e[+-]?[0-9]+)?|\".*\"", re.S)    # needs no quotes in a file


def split(text, separator):
    """Parts of a text between separators, where these stand outside double quotes."""
    parts, quoted = [""], False
    for c in text:
        quoted ^= c == '"'
        if separator.fullmatch(c) and not quoted:
            parts.append("")
        else:
            parts[-1] += c
    if quoted:
        raise StudyError(f"ARMS: {text}: a double quote is not closed")
    return parts


def term(word, text):
    """[(name, fragment or None, {symbol: value})], one for each value."""
    assign = ASSIGN.fullmatch(text)
    if assign:
        values = split(assign[2], re.compile(","))
        if "" in values:
            raise StudyError(f"ARMS: {word}: {assign[1]} lacks a value; write "
                             f"{assign[1]}=VALUE,VALUE")
        return [(f"{assign[1]}={v}".replace('"', ""), None,
                 {assign[1]: v if BARE.fullmatch(v) else f'"{v}"'}) for v in values]
    if not fragment.find(text):
        raise StudyError(f"ARMS: {word}: {text or 'nothing'} is no fragment of {fragment.FOLDER}/, "
                         "no file and no SYMBOL=VALUE,VALUE")
    return [(fragment.name(text), fragment.find(text), {})]


def combine(terms):
    """One arm of one alternative of every term."""
    names, paths, symbols = zip(*terms)
    return Entry("+".join(names), [p for p in paths if p],
                 {name: value for s in symbols for name, value in s.items()})


def arms(word):
    """[Entry] of one word."""
    if NUMBER.fullmatch(word):
        return [Entry.numbered(int(word))]
    if word == study.BASE:
        return [Entry(word, [])]
    parts = [word] if fragment.find(word) else split(word, re.compile(r"\+"))
    return [combine(terms) for terms in itertools.product(*(term(word, p) for p in parts))]


def parse(text):
    """[Entry] of ARMS, which has at least one."""
    words = [w for w in split(text, re.compile(r"\s")) if w]
    numbers = [w for w in words if NUMBER.fullmatch(w)]
    try:
        study.parse_numbers(",".join(numbers) or "0")
    except ValueError:
        raise StudyError(f"ARMS: {' '.join(numbers)}: the arms of the published study are 0 to 5, 4 "
                         "with the 2 and 5 with the 3 that it repeats") from None
    found = [entry for word in words for entry in arms(word)]
    if not found:
        raise StudyError('ARMS: name the arms: ARMS="a.config SYMBOL=1,2"')
    names = [entry.folder for entry in found]
    for name in names:
        if names.count(name) > 1:
            raise StudyError(f"ARMS: two arms would be called {name}")
    return found
