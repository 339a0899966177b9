"""How many tokens each expert gets."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from scaledl.callbacks.metrics import record
from scaledl.callbacks.predictions import save
from scaledl.layers.moe import Router
from scaledl.tasks.base import Task


class ExpertLoad(pl.Callback):
    """Logs the tokens of each layer's busiest expert over those of the mean, `train/expert_load_max_<layer>` and the
    largest of these, `train/expert_load_max`, and draws all experts' loads in `plots/expert_load.png` at the end.

    Loads are those of the global batch. They leave the device at the steps that are logged or saved, and at
    the end.

    Args:
        every_n_steps: between two columns of the picture.
        max_columns: when there are as many, every second goes and every_n_steps doubles.

    Raises:
        ValueError: if a number is too small or, at the start of the training, the model has no experts.
    """

    def __init__(self, every_n_steps: int = 1, max_columns: int = 400):
        if every_n_steps < 1 or max_columns < 2:
            raise ValueError(
                f"callbacks.expert_load.every_n_steps={every_n_steps} must be at least 1 and max_columns={max_columns} "
                "at least 2"
            )
        self.every_n_steps, self.max_columns = every_n_steps, max_columns
        self.run_dir = Path()
        self._steps: list[int] = []
        self._loads: list[Tensor] = []  # (layers, experts) each; 1 is the mean

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        if not any(isinstance(module, Router) for module in pl_module.model.modules()):
            raise ValueError(
                f"callbacks.expert_load is for a model with experts, but {type(pl_module.model).__name__} has none: "
                "remove it (~callbacks.expert_load) or set model.num_experts"
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:  # type: ignore[override]
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        assert pl_module.step_counts is not None
        loads = pl_module.step_counts / pl_module.step_counts.mean(1, keepdim=True)
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step % every == 0 or step == 1:
            largest = loads.amax(1).tolist()
            of_layers = {f"train/expert_load_max_{layer}": value for layer, value in enumerate(largest)}
            record(trainer, {"train/expert_load_max": max(largest), **of_layers})
        if (step - 1) % self.every_n_steps == 0:
            self._steps.append(step)
            self._loads.append(loads)
        if len(self._steps) >= self.max_columns:
            self._steps, self._loads = self._steps[::2], self._loads[::2]
            self.every_n_steps *= 2

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._steps and trainer.is_global_zero:
            save(_figure(torch.stack(self._on_host()), self._steps), self.run_dir, "expert_load.png")

    def state_dict(self) -> dict[str, Any]:
        return {"every_n_steps": self.every_n_steps, "steps": self._steps, "loads": self._on_host()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.every_n_steps, self._steps = state_dict["every_n_steps"], state_dict["steps"]
        self._loads = state_dict["loads"]

    def _on_host(self) -> list[Tensor]:
        """Those of before a resume are there already."""
        return [loads.cpu() for loads in self._loads]


def _figure(loads: Tensor, steps: list[int]) -> Figure:
    """Loads (steps, layers, experts), and their mean over the last quarter of the steps."""
    layers, experts = loads.shape[1:]
    figure = Figure(figsize=(11, 1.6 + 0.1 * min(layers * experts, 80)), layout="constrained")
    mean, course = figure.subplots(1, 2)
    colours = {"cmap": "RdBu_r", "vmin": -1.5, "vmax": 1.5, "aspect": "auto", "interpolation": "nearest"}
    last = loads[-max(1, len(steps) // 4) :].mean(0)
    mean.imshow(last.clamp(min=1e-3).log2(), **colours)
    mean.set(xlabel="expert", ylabel="layer")
    mean.set_title("the last quarter of the steps", fontsize=10)
    extent = (steps[0] - 0.5, steps[-1] + 0.5, layers - 0.5, -0.5)
    image = course.imshow(loads.flatten(1).T.clamp(min=1e-3).log2(), extent=extent, **colours)
    course.set(xlabel="step", ylabel=f"layer, with its {experts} experts")
    course.set_title(f"every {steps[1] - steps[0] if len(steps) > 1 else 1} steps", fontsize=10)
    for axes in (mean, course):
        axes.set_yticks(range(layers))
    figure.colorbar(image, ax=[mean, course], label="log₂ of tokens over the mean", extend="both")
    return figure
