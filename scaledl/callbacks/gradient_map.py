"""Where and when gradients vanish or explode."""

import math
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from torch.optim import Optimizer

from scaledl.callbacks.predictions import save
from scaledl.distributed.gradients import local

SERVED = ("single", "ddp", "fsdp")  # ZeRO frees gradients; other layouts hold a part more than once


class GradientMap(pl.Callback):
    """Draws `plots/gradients.png` at the end: the root mean square of each matrix's gradient, over the steps.

    Values stay on the device until then. Where gradients cannot be added up (`SERVED`), it says so and draws nothing.

    Args:
        every_n_steps: between two columns of the picture.
        max_columns: when there are as many, every second goes and every_n_steps doubles.
    """

    def __init__(self, every_n_steps: int = 1, max_columns: int = 400):
        if every_n_steps < 1 or max_columns < 2:
            raise ValueError(
                f"callbacks.gradient_map.every_n_steps={every_n_steps} must be at least 1 and max_columns="
                f"{max_columns} at least 2"
            )
        self.every_n_steps, self.max_columns = every_n_steps, max_columns
        self.run_dir = Path()
        self._served = True
        self._steps: list[int] = []
        self._squares: list[torch.Tensor] = []  # (layers,) each, of this rank's part

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        name = trainer.strategy.strategy_name  # type: ignore[attr-defined]
        self._served = name in SERVED
        if not self._served and trainer.is_global_zero:
            warnings.warn(
                f"plots/gradients.png is drawn under strategy={', '.join(SERVED)}, not under {name}", stacklevel=2
            )

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        if not self._served or trainer.global_step % self.every_n_steps:
            return
        gradients = [local(p.grad) for _, p in _matrices(pl_module) if p.grad is not None]
        self._squares.append(torch.stack(torch._foreach_norm(gradients)).float().square())
        self._steps.append(trainer.global_step + 1)
        if len(self._steps) == self.max_columns:
            self._steps, self._squares = self._steps[::2], self._squares[::2]
            self.every_n_steps *= 2

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._steps:
            return
        squares = torch.stack(self._squares, 1)  # (layers, steps)
        if trainer.strategy.strategy_name != "ddp":  # type: ignore[attr-defined]
            squares = trainer.strategy.reduce(squares, reduce_op="sum")  # type: ignore[assignment]
        if trainer.is_global_zero:
            matrices = [(name, p) for name, p in _matrices(pl_module) if p.requires_grad]
            sizes = torch.tensor([p.numel() for _, p in matrices], device=squares.device)
            root = (squares / sizes[:, None]).sqrt().cpu()
            save(_figure(root, [name for name, _ in matrices], self._steps), self.run_dir, "gradients.png")


def _matrices(task: pl.LightningModule) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name.removeprefix("model."), p) for name, p in task.named_parameters() if p.ndim >= 2]


def _figure(root: torch.Tensor, names: list[str], steps: list[int]) -> Figure:
    figure = Figure(figsize=(8, 1.5 + 0.22 * min(len(names), 60)), layout="constrained")
    axes = figure.add_subplot()
    shown = root.clamp(min=1e-12).log10()
    extent = (steps[0] - 0.5, steps[-1] + 0.5, len(names) - 0.5, -0.5)
    image = axes.imshow(shown, aspect="auto", cmap="magma", interpolation="nearest", extent=extent)
    every = math.ceil(len(names) / 60)
    axes.set_yticks(range(0, len(names), every), names[::every], fontsize=7)
    axes.set(xlabel="step")
    axes.set_title("root mean square of each matrix's gradient", fontsize=10)
    figure.colorbar(image, label="log₁₀")
    return figure
