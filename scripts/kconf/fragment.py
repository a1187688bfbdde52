# SPDX-License-Identifier: MIT
"""Fragments by name, for what has no need of kconfiglib too."""

import os
import re

FOLDER = "defconfigs"
SUFFIX = ".config"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def find(word):
    """The file of a fragment: a name in defconfigs/, else a path; None without."""
    for path in (os.path.join(FOLDER, word.removesuffix(SUFFIX) + SUFFIX), word):
        if os.path.isfile(path):
            return path
    return None


def name(word):
    """What an arm of this fragment is called."""
    return os.path.basename(word).removesuffix(SUFFIX)


def problem(words):
    """Why a list of fragments cannot be the arms of a study, or None."""
    names = [name(word) for word in words]
    for word, called in zip(words, names):
        if not find(word):
            return f"{word} is no fragment of {FOLDER}/ and no file"
        if not NAME.fullmatch(called) or re.fullmatch(r"(arm)?[0-9]+", called):
            return (f"{word} gives no name to an arm; rename the file: letters, digits and "
                    ". _ + -, and no number alone")
        if names.count(called) > 1:
            return f"two arms would be called {called}; rename one of the files"
    return None
