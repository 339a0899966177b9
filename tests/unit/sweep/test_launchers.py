"""Devices of trials, and what of a trial's processes is left when it ends: nothing."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scaledl.processes import marked, tell
from scaledl.sweep import launchers
from scaledl.sweep.launchers import Local, Processes

# The last words say what the rank does when it is told to stop.
RANK = """
import pathlib, signal, sys, time
def told(number, frame): {}
signal.signal(signal.SIGTERM, told)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(600)
"""
LEADER = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-S", "-c", *sys.argv[1:]], start_new_session=True)  # as torchrun does
time.sleep(600)
"""
IGNORES, SAVES = "pass", "pathlib.Path(sys.argv[1], 'saved').touch(); sys.exit()"


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


def until(true: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def launched(folder: Path, then: str) -> Processes:
    """A launch whose rank runs, in a session of its own."""
    command = [sys.executable, "-S", "-c", LEADER, RANK.replace("{}", then), str(folder)]
    started = Processes(command, dict(os.environ), folder)
    assert started.wait(0.05) is None
    until((folder / "ready").exists)
    assert len(of(folder)) == 2
    return started


def of(folder: Path) -> list[int]:
    return marked(f"{launchers.MARK}={folder}")


@pytest.fixture
def none_left(tmp_path: Path) -> Iterator[None]:
    """After a test that fails, too."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("processes are found in /proc")
    yield
    tell(of(tmp_path), signal.SIGKILL)


def test_no_rank_outlives_a_trial_that_is_stopped(monkeypatch, none_left: None, tmp_path: Path) -> None:
    monkeypatch.setattr(launchers, "GRACE_SECONDS", 0.3)
    started = launched(tmp_path, IGNORES)
    started.stop()
    assert of(tmp_path) == []


def test_a_launch_whose_leader_is_killed_is_over_when_its_ranks_have_saved(
    monkeypatch, none_left: None, tmp_path: Path
) -> None:
    monkeypatch.setattr(launchers, "LINGER_SECONDS", 0.2)
    started = launched(tmp_path, SAVES)
    os.kill(started._leader.pid, signal.SIGKILL)
    assert started.wait(0.05) is None  # its rank lives
    until(lambda: started.wait(0.05) == -signal.SIGKILL)
    assert of(tmp_path) == []
    assert (tmp_path / "saved").exists()


def test_the_next_launch_ends_what_a_lost_worker_has_left(monkeypatch, none_left: None, tmp_path: Path) -> None:
    monkeypatch.setattr(launchers, "LINGER_SECONDS", 0.2)
    monkeypatch.setattr(launchers, "GRACE_SECONDS", 0.2)
    lost = launched(tmp_path, IGNORES)
    os.kill(lost._leader.pid, signal.SIGKILL)
    lost._leader.wait()
    second = Processes([sys.executable, "-S", "-c", "print('alone')"], dict(os.environ), tmp_path)
    until(lambda: second.wait(0.05) == 0)
    assert of(tmp_path) == []
    assert (tmp_path / "log.txt").read_text() == "alone\n"
