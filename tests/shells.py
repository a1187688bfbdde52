# SPDX-License-Identifier: MIT
"""What a command in a Kconfig file says is asked once in a process, not with every Kconfig that
the process reads: nine programs take longer than all the reading."""
import os

import kconfiglib

ask = kconfiglib._shell_fn
said = {}


def shell(conf, name, command):
    """kconfiglib's $(shell,COMMAND); another PATH may have other programs."""
    key = os.environ["PATH"], command
    if key not in said:
        said[key] = ask(conf, name, command)
    return said[key]


kconfiglib._shell_fn = shell
