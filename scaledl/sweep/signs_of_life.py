"""Whether the worker of a trial still lives: its process on this machine, its heartbeat from another."""

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_CLAIM_SECONDS = 600.0  # for a trial that no worker has named its own: a sampler may be thinking
_SETTLED_SECONDS = 2.0  # where none can be: so long that its asker, if it lives, had to be among those who ask


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


def gone(worker: str) -> bool:
    """Whether it was a process of this machine and has ended; of another machine's nothing is known."""
    _, pid, started = worker.rsplit(" ", 2)
    return _is_here(worker) and started != str(_started(int(pid)))


def _is_here(worker: str) -> bool:
    return worker.rsplit(" ", 2)[0] == _machine() != "unknown"


class Watch:
    """Observes the heartbeats of others by the clock of this process alone.

    Args:
        patience: seconds without a new heartbeat, after which a worker is lost.
    """

    def __init__(self, patience: float):
        self.patience = patience
        self._seen: dict[int, tuple[Any, float]] = {}
        self._looked = time.monotonic()

    def lost(self, trial: int, attributes: Mapping[str, Any], askers: Iterable[str]) -> bool:
        """Whether a running trial has no worker any more.

        Args:
            askers: workers that had asked for a trial, and not yet named it their own, before this one was read.
        """
        worker = attributes.get("worker")
        if worker and _is_here(worker):
            return gone(worker)  # one that lives may have been without the database as long as this one was
        now = time.monotonic()
        if now - self._looked > self.patience / 2:  # so long this process saw nothing: no one's heart has stopped yet
            self._seen.clear()
        self._looked = now
        beat = (worker, attributes.get("heartbeat"))
        before, since = self._seen.get(trial, (None, now))
        if before != beat:
            self._seen[trial] = beat, now
            return False
        if worker:
            return now - since > self.patience
        nobody = all(gone(asker) for asker in askers)
        return now - since > (_SETTLED_SECONDS if nobody else max(self.patience, _CLAIM_SECONDS))
