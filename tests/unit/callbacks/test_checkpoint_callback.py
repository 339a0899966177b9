"""When a run saves and what it keeps, with real runs of a few steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from scaledl import checkpoint
from scaledl.callbacks.checkpoint import Checkpoint
from scaledl.data.points import Points
from scaledl.distributed import storage

Fit = Callable[..., pl.Trainer]


def steps_in(run_dir: Path) -> list[int]:
    return [checkpoint.step_of(folder) for folder in checkpoint.all_of(run_dir)]


def state_of(run_dir: Path, step: int) -> dict[str, Any]:
    return storage.load_plain(checkpoint.folder_of(run_dir, step))


class Saves(pl.Callback):
    """Notes at which steps is written, and how many validations are still to come then."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.validations_to_come: list[int] = []

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.steps.append(trainer.global_step)
        self.validations_to_come.append(len(pl_module.script))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_it_saves_every_so_many_optimiser_steps_and_at_the_end(fit: Fit, tmp_path: Path, accumulation: int) -> None:
    fit(Checkpoint(every_n_steps=2, keep_last=100), max_steps=7, accumulation=accumulation)
    assert steps_in(tmp_path) == [2, 4, 6, 7]
    for step in (2, 4, 6, 7):
        state = state_of(tmp_path, step)
        assert state["global_step"] == step
        assert state["Points"]["samples_seen"] == step * 4 * accumulation
        assert storage.problem_of(checkpoint.folder_of(tmp_path, step)) is None


def test_the_newest_stay_and_the_best_one_with_them(fit: Fit, tmp_path: Path) -> None:
    fit(Checkpoint(every_n_steps=1, keep_last=2), max_steps=8, val_every=2, script=[3.0, 1.0, 2.0, 1.5])
    assert steps_in(tmp_path) == [4, 7, 8]
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best == {"metric": "val/loss", "value": 1.0, "step": 4}
    assert checkpoint.best(tmp_path) == checkpoint.folder_of(tmp_path, 4)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir())[0] == "best.json"  # nothing is hidden


def test_mode_max_keeps_the_largest(fit: Fit, tmp_path: Path) -> None:
    fit(Checkpoint(every_n_steps=1, keep_last=1, mode="max"), max_steps=6, val_every=2, script=[1.0, 3.0, 2.0])
    assert steps_in(tmp_path) == [4, 6]


def test_a_new_best_is_saved_though_no_save_is_due(fit: Fit, tmp_path: Path) -> None:
    fit(Checkpoint(every_n_steps=1000, keep_last=100), max_steps=8, val_every=2, script=[3.0, 1.0, 2.0, 1.5])
    assert steps_in(tmp_path) == [2, 4, 8]


def test_a_step_is_written_once_and_after_its_validation(fit: Fit) -> None:
    saves = Saves()
    fit(Checkpoint(every_n_steps=2, keep_last=100), saves, max_steps=6, val_every=2, script=[3.0, 1.0, 2.0])
    assert saves.steps == [2, 4, 6]
    assert saves.validations_to_come == [2, 1, 0]


@pytest.mark.parametrize(("every_n_steps", "copies"), [(5, False), (2, True)])
def test_memory_for_copies_is_taken_only_by_a_run_that_saves_on_its_way(
    fit: Fit, every_n_steps: int, copies: bool
) -> None:
    held = []

    class Looks(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
            trainer.strategy.saver.wait()  # type: ignore[attr-defined]
            held.append(bool(trainer.strategy.saver._copies))  # type: ignore[attr-defined]

    data = Points("moons", 4, 4, num_samples=40, val_fraction=0.0)
    fit(Checkpoint(every_n_steps=every_n_steps, keep_last=100), Looks(), max_steps=5, data=data)
    assert held == [False] + 4 * [copies]


def test_without_validation_nothing_is_late(fit: Fit, tmp_path: Path) -> None:
    data = Points("moons", 4, 4, num_samples=40, val_fraction=0.0)
    fit(Checkpoint(every_n_steps=2, keep_last=100), max_steps=5, val_every=1, data=data)
    assert steps_in(tmp_path) == [2, 4, 5]


def test_a_validation_that_is_not_a_number_is_no_best(fit: Fit, tmp_path: Path) -> None:
    callback = Checkpoint(every_n_steps=1000)
    fit(callback, max_steps=6, val_every=2, script=[float("nan"), 2.0, 3.0])
    assert callback.best == {"metric": "val/loss", "value": 2.0, "step": 4}


def test_a_resumed_run_remembers_its_best(fit: Fit, tmp_path: Path) -> None:
    fit(Checkpoint(every_n_steps=2, keep_last=1), max_steps=4, val_every=2, script=[1.0, 2.0])
    second = Checkpoint(every_n_steps=2, keep_last=1)
    fit(second, max_steps=8, val_every=2, script=[1.5, 1.2], resume=checkpoint.latest(tmp_path))
    assert second.best == {"metric": "val/loss", "value": 1.0, "step": 2}
    assert steps_in(tmp_path) == [2, 8]


def test_a_run_that_has_nothing_to_do_writes_nothing(fit: Fit, tmp_path: Path) -> None:
    fit(Checkpoint(every_n_steps=2), max_steps=4)
    saves = Saves()
    fit(Checkpoint(every_n_steps=2), saves, max_steps=4, resume=checkpoint.latest(tmp_path))
    assert saves.steps == []


@pytest.mark.parametrize("settings", [{"every_n_steps": 0}, {"every_n_steps": 5, "keep_last": 0}])
def test_numbers_below_one_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Checkpoint(**settings)
