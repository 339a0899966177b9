"""Whether the worker of a trial still lives: its process on this machine, its heartbeat from another."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CLAIM_SECONDS = 600.0  # a trial that no worker has named its own: its sampler may be thinking


def this_worker() -> str:
    """Machine, process and its start, so that a number given to another process later is not mistaken for it."""
    return f"{_machine()} {os.getpid()} {_started(os.getpid())}"


def _machine() -> str:
    try:  # containers of one host have process numbers of their own
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return "unknown"


def _started(pid: int) -> str | None:
    """When a process started, in ticks; None if it has ended, be it that nobody has asked for its end yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


class Watch:
    """Observes the heartbeats of others by the clock of this process alone.

    Args:
        patience: seconds without a new heartbeat, after which a worker is lost.
    """

    def __init__(self, patience: float):
        self.patience = patience
        self._seen: dict[int, tuple[Any, float]] = {}

    def lost(self, trial: int, attributes: Mapping[str, Any]) -> bool:
        worker = attributes.get("worker")
        if worker:
            machine, pid, started = worker.rsplit(" ", 2)
            if machine == _machine() != "unknown" and started != str(_started(int(pid))):
                return True
        now = time.monotonic()
        beat = (worker, attributes.get("heartbeat"))
        before, since = self._seen.get(trial, (None, now))
        if before != beat:
            self._seen[trial] = beat, now
            return False
        return now - since > (self.patience if worker else max(self.patience, _CLAIM_SECONDS))
