"""A command that all ranks run as a process beside them; when one of these fails, the others are ended."""

import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from scaledl.distributed import group
from scaledl.distributed.rendezvous import meet
from scaledl.processes import ending_with_parent

POLL_SECONDS, WAIT = 0.1, timedelta(hours=1)
_LAST_WORDS = 4000  # bytes of a failed process's output that are kept


class Board(Protocol):
    """What ranks that are not in a process group tell one another through."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...

    def wait(self, keys: list[str], timeout: timedelta) -> None: ...


@dataclass
class Ended:
    """How a command ended: the first exit code that is not 0, of any rank, and the last words of that process."""

    code: int
    words: str


def board() -> Board:
    """That of torchrun's launcher; one for this process alone where there is none.

    Raises:
        ValueError: the launcher has none.
    """
    from torch.distributed import HashStore, TCPStore

    if group.world_size() == 1:
        return HashStore()
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ValueError(
            "find-batch needs torchrun's own store: start it with torchrun --rdzv-backend c10d, or locally"
        )
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=WAIT)
    return meet(store, group.rank(), group.world_size(), WAIT)


def run(command: list[str], name: str, board: Board, output: Path) -> Ended:
    """Run a command as this rank's part of a job of all ranks; the same answer on all of them.

    Args:
        name: of the job, not used before.
        output: a file for what the command writes.
    """
    rank, ranks = group.rank(), group.world_size()
    if rank == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            board.set(f"{name}/port", str(free.getsockname()[1]))
    port = board.get(f"{name}/port").decode()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC_")}
    with open(output, "wb") as file:
        started = subprocess.Popen(
            ending_with_parent(command, signal.SIGKILL),  # it has nothing to save
            env=environment | {"MASTER_PORT": port},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            while (code := started.poll()) is None and not board.check([f"{name}/failed"]):
                time.sleep(POLL_SECONDS)
        finally:
            if started.poll() is None:
                started.kill()
                started.wait()
    if code:
        words = output.read_bytes()[-_LAST_WORDS:].decode(errors="replace")
        board.set(f"{name}/failed", f"{code} {words}")
    board.set(f"{name}/ended/{rank}", "")
    board.wait([f"{name}/ended/{each}" for each in range(ranks)], WAIT)
    if not board.check([f"{name}/failed"]):
        return Ended(0, "")
    first, _, words = board.get(f"{name}/failed").decode().partition(" ")
    return Ended(int(first), words)
