"""How a trial is started: a launch of its own on this machine's devices, or a job of its own."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

from scaledl.snapshot import SLURM

GRACE_SECONDS = 60  # to save, for a trial that is told to stop
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
        own = {"OMP_NUM_THREADS": str(threads), **_without_launch(os.environ), **environment}
        if self.devices:
            first = slot * self.ranks
            own["CUDA_VISIBLE_DEVICES"] = ",".join(
                self.devices[(first + rank) % len(self.devices)] for rank in range(self.ranks)
            )
        return Processes(command, own, folder)


class Processes:
    """A launch that ends with its worker, and holds a lock on its folder as long as it lives."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path):
        self._command, self._environment, self._folder = command, environment, folder
        self._lock: IO[str] | None = open(folder / ".lock", "w")  # noqa: SIM115 (the launch inherits it)
        self._leader: subprocess.Popen[bytes] | None = None

    def wait(self, seconds: float) -> int | None:
        if self._leader is None:
            self._begin(seconds)
        try:
            return self._leader.wait(seconds) if self._leader else None
        except subprocess.TimeoutExpired:
            return None

    def _begin(self, seconds: float) -> None:
        """The processes of a lost worker may still be saving in the folder."""
        assert self._lock is not None
        if not _locked(self._lock):
            time.sleep(seconds)
            return
        with open(self._folder / "log.txt", "ab") as log:
            self._leader = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[self._lock.fileno()],
                start_new_session=True,  # Ctrl-C is the worker's to pass on
                preexec_fn=end_with_parent,
            )
        self._lock.close()

    def stop(self) -> None:
        if self._leader is None:
            return
        self._leader.terminate()
        if self.wait(GRACE_SECONDS) is None:
            with suppress(ProcessLookupError):
                os.killpg(self._leader.pid, signal.SIGKILL)
            self._leader.wait()


class Slurm:
    """A job of its own for every trial, by slurm/train.sbatch, which requeues itself.

    A job outlives its worker: the next one finds its number in the trial's folder, and waits for it.

    Args:
        nodes: of a trial.
        gpus_per_node: a number, or a type and a number as in h100:8.
        ranks_per_node: None: one for each GPU, or one.
        options: of sbatch.
        n_jobs: jobs at a time.
    """

    def __init__(
        self,
        nodes: int = 1,
        gpus_per_node: int | str | None = None,
        ranks_per_node: int | None = None,
        options: list[str] | None = None,
        n_jobs: int = 4,
    ):
        gpus = str(gpus_per_node or "").rpartition(":")[2]
        if nodes < 1 or n_jobs < 1 or (gpus and not gpus.isdigit()):
            raise ValueError(
                f"hydra.launcher: nodes={nodes}, gpus_per_node={gpus_per_node}, n_jobs={n_jobs} must be positive"
            )
        self.nodes, self.n_jobs = nodes, n_jobs
        self.ranks_per_node = ranks_per_node or int(gpus or 1)
        self.options = [f"--gpus-per-node={gpus_per_node}"] * bool(gpus) + list(options or [])

    def ranks_of_a_node(self) -> int:
        return self.ranks_per_node

    def jobs(self) -> int:
        return self.n_jobs

    def start(self, words: list[str], folder: Path, slot: int, environment: dict[str, str]) -> "Job":
        """
        Raises:
            OSError: there is no Slurm, or it refuses.
        """
        kept = folder / "slurm_job"
        if kept.exists() and (job := Job(kept.read_text().strip())).state():
            return job
        if shutil.which("sbatch") is None:
            raise OSError("hydra/launcher=slurm: there is no sbatch on this machine; start the sweep on a login node")
        own = {
            "PYTHON": sys.executable,
            "RANKS_PER_NODE": str(self.ranks_per_node),
            "SCALEDL_SLURM": str(SLURM),
            "MAX_FAILURES": "1",  # what crashes twice is the trial's own fault
            "LOGS": str(folder.absolute() / "logs"),
        }
        output = f"--output={folder.absolute() / 'log.txt'}"
        command = ["sbatch", "--parsable", "--export=ALL", f"--nodes={self.nodes}", output, *self.options]
        asked = subprocess.run(
            [*command, str(SLURM / "train.sbatch"), *words],
            env=_without_launch(os.environ) | own | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode:
            raise OSError(f"sbatch refused: {asked.stderr.strip()}")
        kept.write_text(number := asked.stdout.strip().partition(";")[0])
        return Job(number)


class Job:
    def __init__(self, number: str):
        self.number = number

    def state(self) -> str:
        """Of Slurm's words, such as PENDING; nothing if the job has ended."""
        asked = subprocess.run(
            ["squeue", "--noheader", "--format=%T", f"--jobs={self.number}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode and "Invalid job id" not in asked.stderr:
            return "UNKNOWN"  # the controller is busy or away
        return asked.stdout.strip()

    def wait(self, seconds: float) -> int | None:
        with suppress(subprocess.TimeoutExpired):  # as a sleep that a signal to this process ends early
            subprocess.run(["sleep", str(seconds)], timeout=seconds + 5, check=False)
        return None if self.state() else 0

    def stop(self) -> None:
        subprocess.run(["scancel", self.number], check=False)
        while self.wait(2) is None:
            continue


def end_with_parent() -> None:
    """Linux tells this process to save and stop when the one that started it is gone, however it went."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _locked(file: IO[str]) -> bool:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # a file system without locks
        return True
    return True


def _without_launch(environment: Any) -> dict[str, str]:
    hidden = (*_OF_ANOTHER_LAUNCH, *_OF_THIS_STEP)
    return {
        name: value for name, value in environment.items() if name not in hidden and not name.startswith("TORCHELASTIC")
    }


def _visible_devices() -> list[str]:
    import torch

    if shown := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [device.strip() for device in shown.split(",")] if torch.cuda.is_available() else []
    return [str(device) for device in range(torch.cuda.device_count())]
