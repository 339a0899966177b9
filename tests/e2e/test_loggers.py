"""The loggers that a run may add to its own log, as their own readers show what they wrote."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scaledl.loggers.lines import read
from tests.conftest import COMMAND, summary_of

pytestmark = pytest.mark.e2e
SHORT = ["train", "experiment=mlp/circles", "trainer.max_steps=20", "trainer.val_check_interval=10", "run_id=a"]
RUN = Path("runs/mlp/circles/a")


def attempts(run_dir: Path) -> list[list[dict[str, Any]]]:
    """The records of each attempt, as the client's own `wandb leet inspect` reads them."""
    found = []
    for file in sorted((run_dir / "wandb").glob("offline-run-*/run-*.wandb")):
        words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        asked = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        found.append([json.loads(line) for line in asked.stdout.splitlines() if line.startswith("{")])
    return found


def history(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["history"]["item"] if "item" in record["history"] else record["history"]
            for record in records if record["type"] == "history"]  # fmt: skip


def config_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    updates = [record[kind].get("config", record[kind]) for record in records
               for kind in ("run", "config") if record["type"] == kind]  # fmt: skip
    return {name: value for update in updates for name, value in update["update"].items()}


def logged(lines: list[dict[str, Any]]) -> dict[tuple[int, str], float]:
    """(step, name) -> value of what does not depend on the clock."""
    return {
        (int(line["step"]), name): value
        for line in lines
        for name, value in line.items()
        if name.startswith(("train/", "val/", "test/"))
    }


def test_wandb_offline_holds_metrics_config_and_pictures(scaledl, tmp_path: Path) -> None:
    scaledl(*SHORT, "logger=wandb", "logger.wandb.checkpoints=true")
    (records,) = attempts(tmp_path / RUN)
    assert logged(history(records)) == logged(read(tmp_path / RUN / "metrics.jsonl"))
    config = config_of(records)
    assert config["model"]["hidden_dims"] == [16]
    assert config["facts"]["num_parameters"] == summary_of(tmp_path / RUN)["num_parameters"]
    (run,) = (record["run"] for record in records if record["type"] == "run")
    assert (run["run_group"], run["tags"]) == ("mlp/circles/a", ["mlp", "mlp/circles"])
    text = json.dumps(records)
    assert "plots/decision_boundary" in text
    assert list((tmp_path / RUN / "wandb").glob("offline-run-*/files/media/images/plots/decision_boundary*.png"))
    assert '"best"' in text and '"latest"' in text  # noqa: PT018 (aliases of one artifact)
    assert not (tmp_path / ".local").exists()  # nothing was staged in the home directory


def test_without_a_valid_key_it_is_logged_offline(scaledl, environment, tmp_path: Path) -> None:
    environment["WANDB_API_KEY"] = "short"
    done = scaledl(*SHORT, "logger=wandb")
    told = [line for line in done.stderr.splitlines() if line.startswith("scaledl: ")]
    assert len(told) == 1, done.stderr
    assert "cannot log online, so this attempt is logged offline, for `wandb sync`: AuthenticationError" in told[0]
    (records,) = attempts(tmp_path / RUN)
    assert logged(history(records)) == logged(read(tmp_path / RUN / "metrics.jsonl"))
    assert summary_of(tmp_path / RUN)["status"] == "completed"


def test_a_kill_costs_wandb_a_second_and_the_next_attempt_joins_the_curve(scaledl, environment, tmp_path: Path) -> None:
    log = tmp_path / RUN / "metrics.jsonl"
    words = [
        "train",
        "experiment=mlp/circles",
        "run_id=a",
        "logger=wandb",
        "checkpoint.every_n_steps=100",
        "scheduler=constant",
    ]
    words += ["trainer.max_steps=1000000", "trainer.val_check_interval=1000000"]
    running = subprocess.Popen([*COMMAND, *words], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 200
        while len(read(log)) < 60:
            assert running.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        sure = read(log)
        time.sleep(3)  # the second that may be lost, and what a busy machine takes; the client alone would lose 15
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    last = max(int(path.name[5:]) for path in (tmp_path / RUN / "checkpoints").glob("step_*"))
    scaledl("resume", str(RUN), f"trainer.max_steps={last + 50}")
    first, second = attempts(tmp_path / RUN)
    assert logged(sure).items() <= logged(history(first)).items()
    assert [config_of(each)["attempt"] for each in (first, second)] == [1, 2]
    assert config_of(second)["begins_at_step"] == last
    groups = {record["run"]["run_group"] for each in (first, second) for record in each if record["type"] == "run"}
    assert groups == {"mlp/circles/a"}
    before = {place: value for place, value in logged(history(first)).items() if place[0] <= last}
    joined, whole = before | logged(history(second)), logged(read(log))
    assert joined.items() <= whole.items()
    lost = {step for step, _ in whole.keys() - joined.keys()}  # a checkpoint may lie in the second that may be lost
    assert all(sure[-1]["step"] < step <= last for step in lost)
    again = {place: value for place, value in logged(history(first)).items() if place in logged(history(second))}
    assert all(logged(history(second))[place] == value for place, value in again.items())  # what overlaps agrees


def test_tensorboard_and_csv_by_one_key_go_on_where_a_run_goes_on(scaledl, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scaledl(*SHORT, "logger=tensorboard", "trainer.log_every_n_steps=5")
    scaledl("resume", str(RUN), "trainer.max_steps=30")
    events = EventAccumulator(str(tmp_path / RUN / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val/acc")] == [10, 20, 30]
    assert [event.step for event in events.Scalars("train/loss")] == [1, 5, 10, 15, 20, 25, 30]
    assert "plots/decision_boundary" in events.Tags()["images"]

    scaledl("resume", str(RUN), "trainer.max_steps=40", "logger=csv")
    scaledl("resume", str(RUN), "trainer.max_steps=50")
    with open(tmp_path / RUN / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [line for line in read(tmp_path / RUN / "metrics.jsonl") if line["step"] > 30 or "test/loss" in line]
    assert [float(row["val/acc"]) for row in rows if row["val/acc"]] == [
        line["val/acc"] for line in lines if "val/acc" in line
    ]
