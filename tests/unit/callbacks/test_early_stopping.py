"""A run ends when its validation no longer improves, stays ended, and goes on when it is given more patience."""

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest

from scaledl import checkpoint
from scaledl.callbacks.checkpoint import Checkpoint
from scaledl.callbacks.early_stopping import EarlyStopping
from scaledl.callbacks.metrics import Metrics

Fit = Callable[..., pl.Trainer]
pytestmark = pytest.mark.filterwarnings("ignore:step .* training ends")
SCRIPT = [3.0, 2.0, 2.5, 2.0, 1.0, 1.5, 1.0, 0.5]  # val/loss after steps 2, 4, 6, ...


def run(
    fit: Fit, stopping: EarlyStopping, max_steps: int = 16, script: list[float] = SCRIPT, **more: object
) -> pl.Trainer:
    callbacks = [stopping, Checkpoint(every_n_steps=1000, keep_last=9), Metrics()]
    return fit(*callbacks, max_steps=max_steps, val_every=2, script=script, **more)


@pytest.mark.parametrize(("patience", "steps"), [(1, 6), (2, 8), (3, 16)])
def test_it_stops_after_so_many_validations_without_an_improvement(fit: Fit, patience: int, steps: int) -> None:
    stopping = EarlyStopping(patience)
    assert run(fit, stopping).global_step == steps
    assert bool(stopping.reason) == (steps < 16)


def test_it_says_why_and_keeps_the_last_step(fit: Fit, tmp_path: Path) -> None:
    stopping = EarlyStopping(2)
    with pytest.warns(
        UserWarning, match="step 8: training ends, for val/loss has not improved in 2 validations: its best"
    ):
        trainer = run(fit, stopping)
    assert stopping.reason == "val/loss has not improved in 2 validations: its best is 2 at step 4"
    assert checkpoint.latest(tmp_path) == checkpoint.folder_of(tmp_path, 8)
    assert checkpoint.best_of(tmp_path)["step"] == 4
    metrics = next(callback for callback in trainer.callbacks if isinstance(callback, Metrics))
    assert metrics.last["early_stopping/waited"] == 2


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_validation_at_which_it_stops_is_not_run_twice(fit: Fit, accumulation: int) -> None:
    script = list(SCRIPT)

    class Count(pl.Callback):
        validations = 0

        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.validations += 1

    count = Count()
    trainer = fit(count, EarlyStopping(2), max_steps=16, val_every=2, script=script, accumulation=accumulation)
    assert (trainer.global_step, count.validations) == (8, 4)


@pytest.mark.parametrize(
    ("settings", "script", "steps"),
    [
        ({"mode": "max"}, [1.0, 2.0, 1.5, 3.0, 2.0, 1.0], 12),
        ({"min_delta": 0.3}, [3.0, 2.8, 2.75, 1.0, 0.9, 0.8], 6),
        ({}, [float("nan"), float("nan"), 1.0], 4),
        ({}, [1.0, float("inf"), 0.5, 0.4, 0.3, 0.2, 0.1, 0.05], 16),
    ],
    ids=["larger is better", "small improvements do not count", "NaN never improves", "infinity does not"],
)
def test_what_counts_as_an_improvement(fit: Fit, settings: dict, script: list[float], steps: int) -> None:
    assert run(fit, EarlyStopping(2, **settings), script=script).global_step == steps


def test_a_resumed_run_stays_ended_unless_it_is_given_more_patience(fit: Fit, tmp_path: Path) -> None:
    assert run(fit, EarlyStopping(2)).global_step == 8
    last = checkpoint.latest(tmp_path)
    still = EarlyStopping(2)
    with pytest.warns(UserWarning, match="step 8: training ends"):
        trainer = run(fit, still, resume=last)
    assert trainer.global_step == 8
    assert still.reason
    assert checkpoint.latest(tmp_path) == last
    assert run(fit, EarlyStopping(3), script=SCRIPT[4:], resume=last).global_step == 16
    without = fit(Checkpoint(every_n_steps=1000), max_steps=12, val_every=2, script=SCRIPT[4:], resume=last)
    assert without.global_step == 12


def test_the_count_goes_on_over_a_resume(fit: Fit, tmp_path: Path) -> None:
    """Stopped by its length after one validation in vain; the second one ends it."""
    assert run(fit, EarlyStopping(2), max_steps=6).global_step == 6
    stopping = EarlyStopping(2)
    assert run(fit, stopping, script=[2.5], resume=checkpoint.latest(tmp_path)).global_step == 8
    assert stopping.best_step == 4


def test_an_evaluation_alone_is_no_reason(fit: Fit) -> None:
    stopping = EarlyStopping(1)
    trainer = run(fit, stopping, script=[3.0, 2.0, 1.0], max_steps=4)
    trainer.validate(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    trainer.validate(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    assert (stopping.waited, stopping.best) == (0, 2.0)


def test_a_metric_that_there_is_not_is_named(fit: Fit) -> None:
    with pytest.raises(
        ValueError, match=r"callbacks.early_stopping.monitor=val/lss is no metric .* there are: val/loss"
    ):
        run(fit, EarlyStopping(2, monitor="val/lss"))


@pytest.mark.parametrize("settings", [{"patience": 0}, {"patience": 1, "min_delta": -0.1}])
def test_settings_that_cannot_be_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"callbacks.early_stopping.patience=\d must be at least 1, and min_delta="):
        EarlyStopping(**settings)
