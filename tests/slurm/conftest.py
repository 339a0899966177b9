"""A real Slurm of three nodes on this machine, and jobs on it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Cluster:
    """Nodes that can fail, and a queue."""

    def __init__(self, settings: dict[str, str]):
        self.settings = settings

    def do(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`scripts/slurm_local.sh <words>`."""
        script = [str(ROOT / "scripts" / "slurm_local.sh"), *words]
        done = subprocess.run(script, env=os.environ | self.settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    def ask(self, *words: str) -> str:
        return subprocess.run(words, env=os.environ | self.settings, capture_output=True, text=True, check=True).stdout

    def sbatch(self, words: list[str], folder: Path, environment: dict[str, str]) -> "Job":
        """Submits `sbatch <words>` from a folder."""
        own = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            ["sbatch", "--parsable", *words],
            cwd=folder,
            env=environment | self.settings | own,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return Job(self, done.stdout.strip(), folder)

    def cancel_all(self) -> None:
        self.ask("scancel", "--user", str(os.getuid()))
        until(lambda: not self.ask("squeue", "--noheader"), 60)


class Job:
    """What Slurm and the log say of a job."""

    def __init__(self, cluster: Cluster, number: str, folder: Path):
        self.cluster, self.number, self.folder = cluster, number, folder

    def facts(self) -> list[dict[str, str]]:
        """Of the job, or of each task of an array."""
        lines = self.cluster.ask("scontrol", "--oneliner", "show", "job", self.number).splitlines()
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if line]

    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob(f"slurm-{self.number}*.out")))

    def end(self, seconds: float = 400) -> dict[str, str]:
        """Wait until nothing of it is in the queue; the facts of the job, or of the first task."""
        running = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED")
        until(lambda: not any(facts["JobState"] in running for facts in self.facts()), seconds, self.log)
        return self.facts()[0]


def until(done, seconds: float, more=lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds} s\n{more()[-6000:]}"
        time.sleep(0.2)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    missing = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"Slurm is not installed ({', '.join(missing)}): scripts/slurm_local.sh install")
    settings = {
        "SLURM_LOCAL_DIR": tempfile.mkdtemp(prefix="slurm"),  # short, for the paths of sockets
        "SLURM_LOCAL_PORT": str(18000 + os.getpid() % 20 * 100),
        "SLURM_LOCAL_NODE_TIMEOUT": "10",
        "PATH": PATH,
    }
    here = Cluster(settings)
    said = here.do("up", "3").stdout
    settings["SLURM_CONF"] = said.strip().rpartition("=")[2]
    yield here
    here.do("down")


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with all its nodes, and afterwards without jobs."""
    yield cluster
    cluster.cancel_all()
    for node in ("node1", "node2", "node3"):
        if not (Path(cluster.settings["SLURM_LOCAL_DIR"]) / "pids" / node).exists():
            cluster.do("start", node)
    for state in cluster.ask("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines():
        if "idle" not in state:
            cluster.ask("scontrol", "update", f"NodeName={state.split()[0]}", "State=RESUME")
    until(lambda: cluster.ask("sinfo", "--noheader", "--format=%T %D").split() == ["idle", "3"], 60)
