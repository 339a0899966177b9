"""Commands that this one stands for, or that end with it; and all the processes that a command has come to."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_BEGIN = """
import ctypes, os, sys
number, parent, *command = sys.argv[1:]
try:
    ctypes.CDLL(None).prctl(1, int(number))  # PR_SET_PDEATHSIG; it outlives exec
    if os.getppid() != int(parent):  # it went before this was asked
        os.kill(os.getpid(), int(number))
except (OSError, AttributeError):  # not on Linux
    pass
os.execvp(command[0], command)
"""


def run(command: list[str], environment: Mapping[str, str] | None = None) -> int:
    """Run a command to its end; its exit code.

    Ctrl-C reaches every process of the terminal, so this one only waits for the command to stop; SIGTERM is passed on.
    """
    started = subprocess.Popen(command, env=environment)
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: started.terminate()),
    }
    try:
        return started.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ending_with_parent(command: list[str], by: signal.Signals = signal.SIGTERM) -> list[str]:
    """The command, begun so that Linux sends it this signal when its parent, this process, is gone, killed or not.

    Only the process itself hears of it, not those that it starts. Popen's preexec_fn would run what libraries have
    registered for a fork, in a process of many threads, which may crash.
    """
    return [sys.executable, "-I", "-S", "-c", _BEGIN, str(int(by)), str(os.getpid()), *command]


def marked(mark: str) -> list[int]:
    """The processes that have `mark`, as in NAME=value, in the environment that they were started with.

    torchrun gives its ranks sessions of their own, and they may outlive it: no group or parent tells whose they are.
    """
    wanted, found = mark.encode(), []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            if wanted in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found


def tell(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
