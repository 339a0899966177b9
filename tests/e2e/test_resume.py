"""A run that is killed, stopped or asked to go on repeats no number and loses none."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import COMMAND, TINY_GPT, metrics_of, summary_of

pytestmark = pytest.mark.e2e
FOLDER = Path("runs/llm/gpt_shakespeare")
# Dropout and accumulation are in, because both hide state that a resume could forget.
RUN = [
    "train",
    *TINY_GPT,
    "model.dropout=0.1",
    "data.micro_batch_size=6",
    "trainer.max_steps=80",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=30",
    "trainer.limit_val_batches=3",
    "checkpoint.every_n_steps=20",
]


def start(words: list[str], environment: dict[str, str], folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_lines(process: subprocess.Popen, path: Path, count: int) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    raise AssertionError(f"{path} never had {count} lines")


def test_killed_runs_go_on_bit_for_bit(scaledl, environment, tmp_path: Path) -> None:
    scaledl(*RUN, "run_id=straight")
    straight = metrics_of(tmp_path / FOLDER / "straight")
    assert [line["step"] for line in straight if "train/loss" in line] == list(range(1, 81))

    killed = tmp_path / FOLDER / "killed"
    for lines in (25, 65):  # between two checkpoints, and just after one that follows a validation
        process = start([*RUN, "run_id=killed"], environment, tmp_path)
        wait_for_lines(process, killed / "metrics.jsonl", lines)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with open(killed / "metrics.jsonl", "a") as log:
            log.write('{"step": 99, "train/lo')  # a line torn by the kill
    said = scaledl(*RUN, "run_id=killed").stdout
    assert "goes on from" in said
    assert metrics_of(killed) == straight
    assert summary_of(killed)["status"] == "completed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resume_goes_on(scaledl, environment, tmp_path: Path, number: signal.Signals) -> None:
    run_dir = tmp_path / FOLDER / "stopped"
    process = start([*RUN, "run_id=stopped", "checkpoint.every_n_steps=1000"], environment, tmp_path)
    wait_for_lines(process, run_dir / "metrics.jsonl", 10)
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "the run has saved" in stderr
    assert "Traceback" not in stderr
    summary = summary_of(run_dir)
    assert summary["status"] == "preempted"
    stopped_at = summary["steps"]
    assert (run_dir / "checkpoints" / f"step_{stopped_at:08d}").exists()

    said = scaledl("resume", str(FOLDER / "stopped"), "trainer.max_steps=60", "data.micro_batch_size=4").stdout
    assert f"step {stopped_at}" in said
    steps = [line["step"] for line in metrics_of(run_dir) if "train/loss" in line]
    assert steps == list(range(1, 61))
    assert summary_of(run_dir)["status"] == "completed"


def test_a_config_alone_begins_and_a_log_without_its_checkpoints_is_left_alone(scaledl, tmp_path: Path) -> None:
    """The first is what a queued job does with what `scaledl launch slurm` has kept."""
    words = [
        "experiment=mlp/circles",
        "~callbacks.decision_boundary",
        "trainer.max_steps=20",
        "checkpoint.every_n_steps=5",
    ]
    scaledl("train", *words, "run_id=a")
    first, second = tmp_path / "runs/mlp/circles/a", tmp_path / "runs/mlp/circles/b"
    second.mkdir()
    shutil.copy(first / "composed.yaml", second)
    scaledl("resume", str(second))
    assert metrics_of(second) == metrics_of(first)

    shutil.rmtree(second / "checkpoints")
    log = (second / "metrics.jsonl").read_bytes()
    said = scaledl("resume", str(second), code=1).stderr
    assert "has a log of 20 steps and no whole checkpoint any more" in said
    assert (second / "metrics.jsonl").read_bytes() == log
