"""The loggers that a run may add to its own log, as their own files show it."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
SHORT = ["train", "experiment=mlp/circles", "trainer.max_steps=20", "trainer.val_check_interval=10", "run_id=a"]
RUN = Path("runs/mlp/circles/a")


def test_wandb_logs_offline_without_an_account(scaledl, tmp_path: Path) -> None:
    scaledl(*SHORT, "logger=wandb")
    files = list((tmp_path / RUN / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    written = files[0].read_bytes()
    for name in (b"train/loss", b"val/acc", b"hidden_dims"):
        assert name in written


def test_tensorboard_writes_its_events(scaledl, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scaledl(*SHORT, "logger=tensorboard")
    events = EventAccumulator(str(tmp_path / RUN / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val/acc")] == [10, 20]
    assert "train/loss" in events.Tags()["scalars"]
