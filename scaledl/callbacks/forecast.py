"""What was forecast, and what came."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from scaledl.callbacks.predictions import logits_of, save
from scaledl.tasks.base import Task


class Forecast(pl.Callback):
    """Draws `plots/forecast.png` at the end of the training: the last windows of the test split (else of the validation
    split) end to end, with the truth, the model's forecast and the simplest one, in the data's standard deviations.

    Args:
        num_points: how many points of the series are shown.
        max_columns: how many of its columns.

    Raises:
        ValueError: at the start of the training, if the data is no series.
    """

    def __init__(self, num_points: int = 120, max_columns: int = 4):
        self.num_points, self.max_columns = num_points, max_columns
        self.run_dir = Path()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "simple_forecasts"):
            raise ValueError(
                f"callbacks.forecast draws a series, and {type(data).__name__} is none: remove it "
                "(~callbacks.forecast) or take data=series"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        data = trainer.datamodule  # type: ignore[attr-defined]
        split = next((name for name in ("test", "val") if data.split(name) is not None), "train")
        windows = data.split(split).__getitems__(np.arange(len(data.split(split))))
        y = windows["y"]
        forecasts = {"model": logits_of(trainer, pl_module, windows["x"]).reshape(y.shape)}
        if not trainer.is_global_zero:
            return
        simple = data.simple_forecasts(split)
        naive = "zero" if "zero" in simple else "persistence"
        forecasts[naive] = simple[naive]
        errors = {name: float((forecast - y).square().mean().sqrt()) for name, forecast in forecasts.items()}
        title = ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
        title = f"{split}/rmse after {trainer.global_step:,} steps: {title}"
        lines = {"truth": y} | forecasts
        names = data.names if data.target is None else [data.target]
        ends = {name: _end_to_end(line, self.num_points) for name, line in lines.items()}
        save(_figure(ends, names[: self.max_columns], title), self.run_dir, "forecast.png")


def _end_to_end(y: Tensor, num_points: int) -> Tensor:
    """The last points (n, C) of windows y (N, horizon, C) or (N, horizon) that follow one another without overlap."""
    horizon = y.shape[1]
    y = y.reshape(len(y), horizon, -1)
    count = max(1, min(num_points // horizon, 1 + (len(y) - 1) // horizon))
    last = len(y) - 1 - horizon * torch.arange(count - 1, -1, -1)
    return y[last].flatten(0, 1)


def _figure(lines: dict[str, Tensor], names: list[str], title: str) -> Figure:
    figure = Figure(figsize=(10, 1 + 2 * len(names)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    colors = {"truth": "black", "model": "tab:blue"}
    for row, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, row + 1)
        for label, line in lines.items():
            simple = label not in colors
            axes.plot(
                line[:, row],
                "--" if simple else "-",
                color=colors.get(label, "tab:orange"),
                linewidth=1 if simple else 1.5,
                label=label,
            )
        axes.set_title(name, fontsize=9)
        axes.set(xlabel="point", ylabel="standard deviations")
        axes.legend(fontsize=8, loc="upper left")
    return figure
