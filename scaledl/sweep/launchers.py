"""How a trial is started, and as it is on this machine: a launch of its own on some of the devices."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Protocol

from scaledl.processes import ending_with_parent, marked, tell

GRACE_SECONDS = 60  # to save, for a trial that is told to stop
LINGER_SECONDS = 5  # in which what a launch leaves behind, such as a logger's own process, may end by itself
MARK = "SCALEDL_LAUNCH"  # environment of all processes of a launch: its folder
_OF_ANOTHER_LAUNCH = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GROUP_RANK",
)
_OF_THIS_STEP = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SCALEDL_RUN_ID", "SCALEDL_EXIT_CODE_FILE")


class Started(Protocol):
    def wait(self, seconds: float) -> int | None:
        """The exit code, or None if there is none yet."""

    def stop(self) -> None:
        """Let it save, and wait for its end."""


class Launcher(Protocol):
    nodes: int

    def ranks_of_a_node(self) -> int: ...

    def jobs(self) -> int:
        """How many trials run at a time."""

    def start(self, words: list[str], folder: Path, slot: int, environment: dict[str, str]) -> Started:
        """Start `scaledl <words>`; what it prints is added to `log.txt` in the folder."""


class Local:
    """Processes of this machine, torchrun's where a trial has several ranks.

    Args:
        ranks: of a trial.
        n_jobs: trials at a time; None: as many as the GPUs hold, one without GPUs.
    """

    nodes = 1

    def __init__(self, ranks: int = 1, n_jobs: int | None = None):
        if ranks < 1 or (n_jobs is not None and n_jobs < 1):
            raise ValueError(f"hydra.launcher.ranks={ranks} and n_jobs={n_jobs} must be at least 1")
        self.ranks, self.n_jobs, self.devices = ranks, n_jobs, _visible_devices()
        if 0 < len(self.devices) < ranks:
            raise ValueError(
                f"hydra.launcher.ranks={ranks}: this machine shows {len(self.devices)} GPUs, and each rank needs one"
            )

    def ranks_of_a_node(self) -> int:
        return self.ranks

    def jobs(self) -> int:
        return self.n_jobs or max(1, len(self.devices) // self.ranks)

    def start(self, words: list[str], folder: Path, slot: int, environment: dict[str, str]) -> "Processes":
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}"]
        command = [sys.executable, *(several if self.ranks > 1 else []), "-m", "scaledl", *words]
        threads = max(1, (os.cpu_count() or 1) // (self.jobs() * self.ranks))
        own = {"OMP_NUM_THREADS": str(threads), **without_launch(os.environ), **environment}
        if self.devices:
            first = slot * self.ranks
            own["CUDA_VISIBLE_DEVICES"] = ",".join(
                self.devices[(first + rank) % len(self.devices)] for rank in range(self.ranks)
            )
        return Processes(command, own, folder)


class Processes:
    """A launch that ends with its worker, and is over when no process of it lives: one in a folder at a time.

    A lock on the folder tells of a launch on another machine.
    """

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path):
        self._command, self._folder = command, folder
        self._environment = environment | {MARK: str(folder.absolute())}
        self._mark = f"{MARK}={folder.absolute()}"
        self._lock: IO[str] | None = open(folder / ".lock", "w")  # noqa: SIM115 (the launch inherits it)
        self._leader: subprocess.Popen[bytes] | None = None
        self._left_since: float | None = None  # processes without their leader
        self._told = False

    def wait(self, seconds: float) -> int | None:
        if self._leader is None and not self._begun(seconds):
            return None
        assert self._leader is not None
        try:
            code = self._leader.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return code if self._empty(seconds) else None

    def _begun(self, seconds: float) -> bool:
        """The processes of a lost worker may still be saving in the folder."""
        assert self._lock is not None
        if not _locked(self._lock):
            time.sleep(seconds)
            return False
        if not self._empty(seconds):
            return False
        with open(self._folder / "log.txt", "ab") as log:
            self._leader = subprocess.Popen(
                ending_with_parent(self._command),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[self._lock.fileno()],
                start_new_session=True,  # Ctrl-C is the worker's to pass on
            )
        self._lock.close()
        return True

    def _empty(self, seconds: float) -> bool:
        """Whether no process is left without its leader; those that are get a signal to save, later one that kills."""
        left = marked(self._mark)
        if not left:
            self._left_since, self._told = None, False
            return True
        now = time.monotonic()
        self._left_since = self._left_since or now
        if not self._told and now - self._left_since >= LINGER_SECONDS:
            self._told = True
            tell(left, signal.SIGTERM)
        if now - self._left_since >= LINGER_SECONDS + GRACE_SECONDS:
            tell(left, signal.SIGKILL)
        time.sleep(seconds)
        return False

    def stop(self) -> None:
        if self._leader is None:
            return
        self._leader.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        while self.wait(0.2) is None:
            if time.monotonic() > deadline:
                if self._leader.poll() is None:
                    tell([-self._leader.pid], signal.SIGKILL)  # its group: all that can be known without /proc
                tell(marked(self._mark), signal.SIGKILL)


def _locked(file: IO[str]) -> bool:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # a file system without locks
        return True
    return True


def without_launch(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what a launch that this process belongs to has put there."""
    hidden = (*_OF_ANOTHER_LAUNCH, *_OF_THIS_STEP)
    return {
        name: value for name, value in environment.items() if name not in hidden and not name.startswith("TORCHELASTIC")
    }


def _visible_devices() -> list[str]:
    import torch

    if shown := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [device.strip() for device in shown.split(",")] if torch.cuda.is_available() else []
    return [str(device) for device in range(torch.cuda.device_count())]
