"""Commands that this one stands for, or that end with it; and all the processes that a command has come to."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


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


def ends_with_parent(by: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """What Popen's preexec_fn needs, so that Linux sends a process this signal when its parent is gone, killed or not.

    Only the process itself hears of it, not those that it starts.
    """
    parent = os.getpid()

    def ask() -> None:
        with suppress(OSError, AttributeError):  # not on Linux
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
            if os.getppid() != parent:  # it went before this was asked
                os.kill(os.getpid(), by)

    return ask


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
