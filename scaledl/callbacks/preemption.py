"""A signal only sets a flag; the run stops at the next step boundary, with a checkpoint."""

import signal
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from scaledl.callbacks.checkpoint import Checkpoint


class Preempted(Exception):  # noqa: N818 (an outcome, not an error)
    """The run was asked to stop and has saved."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class Preemption(pl.Callback):
    """Ctrl-C, SIGTERM and SIGUSR1 save and stop; a second Ctrl-C stops at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._received is None or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoint):
                callback.save(trainer)
        raise Preempted(self._received)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._received = number
