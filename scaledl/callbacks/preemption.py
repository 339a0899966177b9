"""A signal only sets a flag; the run stops at the next step boundary, with a checkpoint."""

import signal
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from scaledl.callbacks.checkpoint import Checkpoint, validates_after


class Preempted(Exception):  # noqa: N818 (an outcome, not an error)
    """The run was asked to stop and has saved."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class Preemption(pl.Callback):
    """Ctrl-C, SIGTERM and SIGUSR1 save and stop; a second Ctrl-C stops at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received = 0  # the signal that this rank has got
        self._previous: dict[int, Any] = {}
        self._asked: tuple[torch.Tensor, dist.Work] | None = None
        self._heard = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not earlier: Lightning sets a SIGTERM handler of its own before, which would raise in the middle of a step.
        self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._heard = self._heard or self._heard_by_any_rank()
        if self._heard and validates_after(trainer, batch_idx):
            _save(trainer)  # before the validation, which may last longer than there is time
        elif self._heard:
            self._stop(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._heard = self._heard or self._heard_by_any_rank()
            if self._heard:
                self._stop(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _stop(self, trainer: pl.Trainer) -> None:
        _save(trainer, wait=True)
        raise Preempted(self._heard)

    def _heard_by_any_rank(self) -> int:
        """The signal, or 0. Ranks ask each other at every step and read the answer a step later, so that none waits."""
        if not dist.is_initialized():
            return self.received
        asked_before = self._asked
        answer = torch.tensor(self.received)
        self._asked = answer, dist.all_reduce(answer, dist.ReduceOp.MAX, async_op=True)
        if asked_before is None:
            return 0
        asked_before[1].wait()
        return int(asked_before[0])

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def _save(trainer: pl.Trainer, wait: bool = False) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoint):
            callback.save(trainer, wait)
