"""Steps whose gradient is not finite change nothing (distributed/state.py); here they are counted and reported."""

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from scaledl import checkpoint
from scaledl.distributed import group
from scaledl.tasks.base import Task


class BadSteps(pl.Callback):
    """Logs `train/skipped`, the number of steps left out so far, and ends a run that no longer learns.

    The counters live on the device and are read at the steps that are logged.

    Args:
        max_in_a_row: so many bad steps one after the other end the run.
        rewind: go back to the weights of the last checkpoint instead, and on with the data that comes next; the run
            ends if that is bad from its first step too.

    Raises:
        ValueError: max_in_a_row is below 1.
    """

    def __init__(self, max_in_a_row: int = 20, rewind: bool = False):
        if max_in_a_row < 1:
            raise ValueError(f"callbacks.bad_steps.max_in_a_row={max_in_a_row} must be at least 1")
        self.max_in_a_row, self.rewind = max_in_a_row, rewind
        self.run_dir = Path()
        self._counts = torch.zeros(2)  # all, and those since the last good one
        self._said, self._rewound = 0, False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:  # type: ignore[override]
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        bad = pl_module.step_metrics["skipped"]
        self._counts = _counted(self._counts.to(bad.device), bad)
        pl_module.step_metrics["skipped"] = self._counts[0]
        if trainer.global_step % trainer.log_every_n_steps == 0 or trainer.global_step == 1:  # type: ignore[attr-defined]
            self._report(trainer)

    def _report(self, trainer: pl.Trainer) -> None:
        total, in_a_row = (int(count) for count in self._counts.tolist())
        if total > self._said and trainer.is_global_zero:
            warnings.warn(
                f"step {trainer.global_step}: {total - self._said} steps since the last report had a gradient that is "
                f"not finite; they were left out ({total} so far, the last {in_a_row} in a row)",
                stacklevel=2,
            )
        self._said = total
        if in_a_row == 0:
            self._rewound = False
        elif in_a_row >= self.max_in_a_row:
            self._go_back_or_end(trainer, in_a_row)

    def _go_back_or_end(self, trainer: pl.Trainer, in_a_row: int) -> None:
        step, strategy = trainer.global_step, trainer.strategy
        if self.rewind and not self._rewound:
            strategy.saver.wait()  # type: ignore[attr-defined]
            last = group.agreed(lambda: checkpoint.latest(self.run_dir))
            if last is not None:
                strategy.load_tensors(last)  # type: ignore[attr-defined]
                self._counts[1], self._rewound = 0, True
                if trainer.is_global_zero:
                    warnings.warn(
                        f"step {step}: {in_a_row} bad steps in a row; back to the weights of step "
                        f"{checkpoint.step_of(last)}, on with the data of step {step + 1}",
                        stacklevel=2,
                    )
                return
        raise ValueError(
            f"step {step}: the gradients of the last {in_a_row} steps were not finite, so nothing is learned any more "
            f"(callbacks.bad_steps.max_in_a_row={self.max_in_a_row}). The weights are those before them. Look at the "
            "data of these steps; try a smaller optimizer.lr, trainer.gradient_clip_val=1 or precision=32-true"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self._counts.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._counts = torch.tensor(state_dict["counts"])
        self._said = int(self._counts[0])


def _counted(counts: Tensor, bad: Tensor) -> Tensor:
    return torch.stack([counts[0] + bad, (counts[1] + 1) * bad])
