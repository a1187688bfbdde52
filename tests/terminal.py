# SPDX-License-Identifier: MIT
"""A command in a terminal of its own, and keys typed into it."""
import os
import pty
import select
import time

POLL = 0.2          # seconds without output after which the next key is typed
STARTS = 5          # the same before there was any output


def exists():
    """Whether this machine has pseudo-terminals."""
    try:
        for end in os.openpty():
            os.close(end)
    except OSError:
        return False
    return True


def drive(command, keys, seconds=60.0, cwd=None, env=None):
    """(exit status, output) of a command; keys are typed one per idle moment."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(cwd or ".")
        os.execvpe(command[0], command,
                   dict(env or os.environ, TERM="xterm", LINES="40", COLUMNS="100"))
    keys, screen, end = list(keys), "", time.monotonic() + seconds
    while time.monotonic() < end:
        ready = select.select([terminal], [], [], POLL if screen else STARTS)[0]
        if ready:
            try:
                screen += os.read(terminal, 65536).decode(errors="replace")
            except OSError:         # the end of the output
                break
        elif keys:
            os.write(terminal, keys.pop(0).encode())
    else:
        os.kill(child, 9)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), screen
