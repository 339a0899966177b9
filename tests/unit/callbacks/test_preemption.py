"""A real signal stops a real run at a step boundary, with a checkpoint from which nothing differs."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from scaledl import checkpoint
from scaledl.callbacks.checkpoint import Checkpoint
from scaledl.callbacks.preemption import Preempted, Preemption

Fit = Callable[..., pl.Trainer]


@pytest.fixture(autouse=True)
def _restore_handlers() -> Any:
    """Whatever a test leaves, the tests after it have their Ctrl-C."""
    before = {number: signal.getsignal(number) for number in Preemption.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Sender(pl.Callback):
    """Sends signals to this process at the beginning of a micro-batch."""

    def __init__(self, at: int, *numbers: signal.Signals):
        self.at, self.numbers = at, numbers
        self.last_batch = -1

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.last_batch = batch_idx
        if batch_idx == self.at:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", Preemption.SIGNALS)
def test_a_signal_stops_at_the_end_of_its_step_and_saves_it(fit: Fit, tmp_path: Path, number: signal.Signals) -> None:
    sender = Sender(6, number)  # in the first of the three micro-batches of step 3
    with pytest.raises(Preempted, match=number.name) as stopped:
        fit(sender, Preemption(), Checkpoint(every_n_steps=1000), max_steps=10, accumulation=3)
    assert stopped.value.signal_number == number
    assert sender.last_batch == 8
    assert checkpoint.latest(tmp_path) == checkpoint.folder_of(tmp_path, 3)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(fit: Fit, tmp_path: Path) -> None:
    arguments = {"max_steps": 6, "accumulation": 2}
    straight = fit(**arguments).lightning_module.model.weight.detach()
    with pytest.raises(Preempted):
        fit(Sender(4, signal.SIGTERM), Preemption(), Checkpoint(every_n_steps=1000), **arguments)
    torch.rand(17)
    resumed = fit(Checkpoint(every_n_steps=1000), resume=checkpoint.latest(tmp_path), **arguments)
    assert torch.equal(resumed.lightning_module.model.weight.detach(), straight)


def test_a_second_ctrl_c_stops_at_once(fit: Fit, tmp_path: Path) -> None:
    sender = Sender(3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(SystemExit):  # what Lightning makes of a KeyboardInterrupt
        fit(sender, Preemption(), Checkpoint(every_n_steps=1000), max_steps=10)
    assert checkpoint.all_of(tmp_path) == []


def test_a_run_gives_the_signals_back_however_it_ends(fit: Fit) -> None:
    before = [signal.getsignal(number) for number in Preemption.SIGNALS]
    fit(Preemption(), max_steps=1)
    assert [signal.getsignal(number) for number in Preemption.SIGNALS] == before
    with pytest.raises(Preempted):
        fit(Sender(1, signal.SIGUSR1), Preemption(), max_steps=3)
    assert [signal.getsignal(number) for number in Preemption.SIGNALS] == before


def test_a_step_that_is_due_for_validation_is_validated_before_it_stops(fit: Fit, tmp_path: Path) -> None:
    saving = Checkpoint(every_n_steps=1000)
    with pytest.raises(Preempted):
        fit(Sender(3, signal.SIGUSR1), saving, Preemption(), max_steps=8, val_every=4, script=[1.0, 0.5])
    assert saving.best == {"metric": "val/loss", "value": 1.0, "step": 4}
    assert checkpoint.latest(tmp_path) == checkpoint.folder_of(tmp_path, 4)


class Looker(pl.Callback):
    """What is saved when a validation begins."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self.seen: list[Path | None] = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        trainer.strategy.saver.wait()
        self.seen.append(checkpoint.latest(self.run_dir))


def test_it_is_saved_before_that_validation_which_may_be_cut_off(fit: Fit, tmp_path: Path) -> None:
    looker = Looker(tmp_path)
    sender = Sender(3, signal.SIGUSR1)
    with pytest.raises(Preempted):
        fit(sender, Checkpoint(every_n_steps=1000), Preemption(), looker, max_steps=8, val_every=4, script=[1.0, 0.5])
    assert looker.seen == [checkpoint.folder_of(tmp_path, 4)]
