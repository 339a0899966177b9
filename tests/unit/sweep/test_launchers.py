"""Devices of trials, and trials as Slurm jobs, with commands that stand for Slurm's."""

import os
import sys
from pathlib import Path

import pytest

from scaledl.sweep import launchers
from scaledl.sweep.launchers import Local, Processes, Slurm

SBATCH = """#!/bin/sh
echo "$@" >> "{folder}/submitted"
echo PENDING > "{folder}/state"
echo 17
"""
SQUEUE = '#!/bin/sh\ncat "{folder}/state"\n'
SCANCEL = '#!/bin/sh\n: > "{folder}/state"\n'


def test_trials_are_packed_onto_the_devices(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launchers, "_visible_devices", lambda: ["2", "3", "5", "7"])
    launcher = Local(ranks=2)
    assert launcher.jobs() == 2
    seen = []
    for slot in range(2):
        started = launcher.start(["train"], tmp_path, slot, {})
        seen.append(started._environment["CUDA_VISIBLE_DEVICES"])
        assert "--nproc-per-node=2" in started._command
    assert seen == ["2,3", "5,7"]
    with pytest.raises(ValueError, match="this machine shows 4 GPUs"):
        Local(ranks=5)


def test_a_launch_sees_nothing_of_the_one_that_started_it(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launchers, "_visible_devices", list)
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "TORCHELASTIC_RUN_ID", "SCALEDL_RUN_ID"):
        monkeypatch.setenv(name, "1")
    environment = Local().start(["train"], tmp_path, 0, {"SCALEDL_TRIAL": "x"})._environment
    assert not {"RANK", "WORLD_SIZE", "SLURM_PROCID", "TORCHELASTIC_RUN_ID", "SCALEDL_RUN_ID"} & set(environment)
    assert environment["SCALEDL_TRIAL"] == "x"


def test_a_launch_waits_for_the_one_that_still_writes(tmp_path: Path) -> None:
    first = Processes([sys.executable, "-S", "-c", "import time; time.sleep(30)"], dict(os.environ), tmp_path)
    assert first.wait(0.1) is None
    second = Processes([sys.executable, "-S", "-c", "print('second')"], dict(os.environ), tmp_path)
    assert second.wait(0.3) is None
    assert "second" not in (tmp_path / "log.txt").read_text()
    first.stop()
    assert second.wait(0.1) is None or second.wait(20) == 0
    assert second.wait(20) == 0
    assert "second" in (tmp_path / "log.txt").read_text()


def test_a_slurm_job_outlives_its_worker_and_is_found_again(monkeypatch, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
        (programs / name).write_text(text.format(folder=tmp_path))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    launcher = Slurm(nodes=2, gpus_per_node="h100:8", options=["--time=1:00:00"])
    assert (launcher.nodes, launcher.ranks_of_a_node(), launcher.jobs()) == (2, 8, 4)
    job = launcher.start(["train", "seed=1"], tmp_path, 0, {})
    assert job.wait(0.05) is None
    submitted = (tmp_path / "submitted").read_text()
    assert "--nodes=2" in submitted
    assert "--gpus-per-node=h100:8 --time=1:00:00" in submitted
    assert submitted.rstrip().endswith("train.sbatch train seed=1")
    assert launcher.start(["train", "seed=1"], tmp_path, 0, {}).number == job.number
    assert (tmp_path / "submitted").read_text() == submitted  # once
    job.stop()
    assert job.wait(0.05) == 0
