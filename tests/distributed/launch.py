"""Starts the command line on several ranks, as a person does with torchrun, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


class Job:
    """`torchrun -m scaledl <words>`; all its processes have `mark` in their environment."""

    def __init__(self, ranks: int, words: list[str], folder: Path, environment: dict[str, str]):
        self.mark = uuid.uuid4().hex
        own = {"OMP_NUM_THREADS": "1", "LAUNCHED_AS": self.mark}
        self.launcher = subprocess.Popen(
            [*TORCHRUN, str(ranks), "-m", "scaledl", *words],
            cwd=folder,
            env=environment | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pids(self, rank: int | None = None) -> list[int]:
        """Of all processes of the job, or of those of one rank."""
        wanted = {f"LAUNCHED_AS={self.mark}".encode()} | ({f"RANK={rank}".encode()} if rank is not None else set())
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if wanted <= set(environ.read_bytes().split(b"\0")):
                    found.append(int(environ.parent.name))
            except OSError:  # it has ended, or belongs to another user
                continue
        return found

    def end(self, seconds: float = 150) -> subprocess.CompletedProcess[str]:
        stdout, stderr = self.launcher.communicate(timeout=seconds)
        return subprocess.CompletedProcess(self.launcher.args, self.launcher.returncode, stdout, stderr)

    def kill(self) -> None:
        for pid in {*self.pids(), self.launcher.pid} if self.launcher.poll() is None else self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.launcher.communicate()


@contextmanager
def started(ranks: int, words: list[str], folder: Path, environment: dict[str, str]) -> Iterator[Job]:
    job = Job(ranks, words, folder, environment)
    try:
        yield job
    finally:
        job.kill()


def launch(
    ranks: int, *words: str, folder: Path, environment: dict[str, str], code: int = 0, seconds: float = 150
) -> subprocess.CompletedProcess[str]:
    """Run to the end; fails if the exit code is not the expected one, or within that many seconds there is none."""
    with started(ranks, list(words), folder, environment) as job:
        try:
            done = job.end(seconds)
        except subprocess.TimeoutExpired:
            job.kill()
            raise
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done
