# SPDX-License-Identifier: MIT
"""A command in a terminal of its own, and keys typed into it."""
import os
import pty
import select
import signal
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


def start(command, cwd=None, env=None):
    """(process, terminal) of a command."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(cwd or ".")
        os.execvpe(command[0], command,
                   dict(env or os.environ, TERM="xterm", LINES="40", COLUMNS="100"))
    return child, terminal


def leave(command, seconds):
    """Whether a command that draws a screen ends when its terminal goes, SIGHUP ignored."""
    kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    child, terminal = start(command)
    signal.signal(signal.SIGHUP, kept)
    while select.select([terminal], [], [], STARTS)[0] and b"\x1b[" not in os.read(terminal, 65536):
        pass
    os.close(terminal)
    end = time.monotonic() + seconds
    while not (done := os.waitpid(child, os.WNOHANG)[0]) and time.monotonic() < end:
        time.sleep(POLL)
    if not done:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return bool(done)


def drive(command, keys, seconds=60.0, cwd=None, env=None):
    """(exit status, output) of a command; keys are typed one per idle moment."""
    child, terminal = start(command, cwd, env)
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
