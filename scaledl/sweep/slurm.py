"""A trial as a Slurm job of its own."""

import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from scaledl.snapshot import SLURM
from scaledl.sweep.launchers import without_launch

POLL_SECONDS = 20  # between two questions to Slurm's controller, which serves all its users
END_SECONDS = 2  # between two while a cancelled job is waited for


class Slurm:
    """A job of its own for every trial, by slurm/trial.sbatch or train.sbatch, which requeues itself.

    A job outlives its worker: the next one finds its number in the trial's folder, and waits for it. Trials of one node
    share nodes; one of several nodes has them to itself.

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
        command = ["sbatch", "--parsable", "--export=ALL", f"--nodes={self.nodes}"]
        command += [f"--output={folder.absolute() / 'log.txt'}"]
        command += [f"--cpus-per-task={self.ranks_per_node}"] * (self.nodes == 1)  # a task is a torchrun
        script = SLURM / ("trial.sbatch" if self.nodes == 1 else "train.sbatch")
        asked = subprocess.run(
            [*command, *self.options, str(script), *words],
            env=without_launch(os.environ) | own | environment,
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
        self._known, self._asked = "UNKNOWN", -math.inf  # the latest answer, and when it came

    def state(self, age: float = POLL_SECONDS) -> str:
        """Of Slurm's words, such as PENDING; nothing if the job has ended. The answer may be so many seconds old."""
        if time.monotonic() - self._asked >= age:
            self._known, self._asked = self._ask(), time.monotonic()
        return self._known

    def _ask(self) -> str:
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
        time.sleep(seconds)
        return None if self.state() else 0

    def stop(self) -> None:
        subprocess.run(["scancel", self.number], check=False)
        while self.state(END_SECONDS):
            time.sleep(END_SECONDS)
