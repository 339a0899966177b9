"""Trials as Slurm jobs, with commands that stand for Slurm's; on a real one in tests/slurm/."""

import os
from pathlib import Path

import pytest

from scaledl.snapshot import SLURM
from scaledl.sweep import slurm
from scaledl.sweep.slurm import Slurm

SBATCH = """#!/bin/sh
echo "$@" >> "{folder}/submitted"
echo PENDING > "{folder}/state"
echo 17
"""
SQUEUE = '#!/bin/sh\necho >> "{folder}/asked"\ncat "{folder}/state"\n'
SCANCEL = '#!/bin/sh\n: > "{folder}/state"\n'


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the commands, in which they keep what they are told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_a_slurm_job_outlives_its_worker_and_is_found_again(monkeypatch, stand_ins: Path, tmp_path: Path) -> None:
    launcher = Slurm(nodes=2, gpus_per_node="h100:8", options=["--time=1:00:00"])
    assert (launcher.nodes, launcher.ranks_of_a_node(), launcher.jobs()) == (2, 8, 4)
    job = launcher.start(["train", "seed=1"], tmp_path, 0, {})
    assert job.wait(0.05) is None
    submitted = (stand_ins / "submitted").read_text()
    assert "--nodes=2" in submitted
    assert "--gpus-per-node=h100:8 --time=1:00:00" in submitted
    assert submitted.rstrip().endswith("train.sbatch train seed=1")
    assert launcher.start(["train", "seed=1"], tmp_path, 0, {}).number == job.number
    assert (stand_ins / "submitted").read_text() == submitted  # once
    monkeypatch.setattr(slurm, "END_SECONDS", 0.05)
    job.stop()
    assert job.wait(0.05) == 0


def test_the_controller_is_asked_three_times_a_minute(monkeypatch, stand_ins: Path, tmp_path: Path) -> None:
    job = Slurm().start(["train"], tmp_path, 0, {})
    now = 100.0
    monkeypatch.setattr(slurm.time, "monotonic", lambda: now)
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    for half_second in range(120):
        now = 100.0 + half_second / 2
        assert job.wait(0.5) is None
    assert len((stand_ins / "asked").read_text().splitlines()) == 3
    (stand_ins / "state").write_text("")
    now = 160.0
    assert job.wait(0.5) == 0


@pytest.mark.parametrize(("nodes", "script"), [(1, "trial.sbatch"), (2, "train.sbatch")])
def test_trials_of_one_node_share_it(nodes: int, script: str, stand_ins: Path, tmp_path: Path) -> None:
    Slurm(nodes=nodes, ranks_per_node=3).start(["train"], tmp_path, 0, {})
    submitted = (stand_ins / "submitted").read_text()
    assert submitted.rstrip().endswith(f"{SLURM / script} train")
    assert ("--cpus-per-task=3" in submitted) == (nodes == 1)
    directives = [line for line in (SLURM / script).read_text().splitlines() if line.startswith("#SBATCH")]
    assert any("--exclusive" in line for line in directives) == (nodes == 2)
