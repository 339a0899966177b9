"""How a classifier divides the plane."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from scaledl.callbacks.predictions import logits_of, save
from scaledl.tasks.base import Task


class DecisionBoundary(pl.Callback):
    """Draws `plots/decision_boundary.png` at the end of the training: each place has the colour of its likeliest class,
    the paler the less sure, under the training points (small) and those held out (ringed; the wrong ones crossed).

    Args:
        resolution: of the grid, per side.

    Raises:
        ValueError: at the start of the training, if samples are not points (B, 2).
    """

    def __init__(self, resolution: int = 300):
        self.resolution = resolution
        self.run_dir = Path()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        shape = trainer.datamodule.split("train").__getitems__(np.arange(1))["x"].shape[1:]  # type: ignore[attr-defined]
        if shape != (2,):
            raise ValueError(
                f"callbacks.decision_boundary draws points of the plane, but samples have shape {tuple(shape)}: "
                "remove it (~callbacks.decision_boundary) or take data=points"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        splits = dict(trainer.datamodule.splits())  # type: ignore[attr-defined]
        points = {name: split.__getitems__(np.arange(len(split))) for name, split in splits.items()}
        held_out = next((name for name in ("test", "val") if name in points), "train")
        train, shown = points["train"], points[held_out]
        everything = torch.cat([train["x"], shown["x"]])
        low, high = everything.amin(0) - 0.2, everything.amax(0) + 0.2
        axis_x, axis_y = (torch.linspace(low[i], high[i], self.resolution) for i in (0, 1))
        grid = torch.cartesian_prod(axis_x, axis_y)  # (R * R, 2)
        on_grid = logits_of(trainer, pl_module, grid).reshape(self.resolution, self.resolution, -1).transpose(0, 1)
        wrong = logits_of(trainer, pl_module, shown["x"]).argmax(1) != shown["y"]
        if not trainer.is_global_zero:
            return
        title = f"{held_out}: {int(wrong.sum())} of {len(wrong)} wrong after {trainer.global_step:,} steps"
        save(_figure(axis_x, axis_y, on_grid, train, shown, wrong, title), self.run_dir, "decision_boundary.png")


def _figure(
    axis_x: Tensor,
    axis_y: Tensor,
    on_grid: Tensor,
    train: dict[str, Tensor],
    shown: dict[str, Tensor],
    wrong: Tensor,
    title: str,
) -> Figure:
    num_classes = on_grid.shape[-1]
    palette = colormaps["tab10" if num_classes <= 10 else "tab20"](np.arange(num_classes) % 20)[:, :3]  # (C, 3)
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot()
    extent = (float(axis_x[0]), float(axis_x[-1]), float(axis_y[0]), float(axis_y[-1]))
    ground = on_grid.softmax(-1).numpy() @ palette  # (R, R, 3): colours mixed by probability
    axes.imshow(0.6 + 0.4 * ground, origin="lower", extent=extent, interpolation="bilinear")
    for index in range(num_classes):  # where a class gains the upper hand
        others = torch.cat([on_grid[..., :index], on_grid[..., index + 1 :]], -1).amax(-1)
        axes.contour(axis_x, axis_y, on_grid[..., index] - others, levels=[0.0], colors="black", linewidths=1)
    axes.scatter(train["x"][:, 0], train["x"][:, 1], s=4, color=palette[train["y"]], alpha=0.5, linewidths=0)
    axes.scatter(
        shown["x"][:, 0], shown["x"][:, 1], s=22, color=palette[shown["y"]], edgecolors="white", linewidths=0.7
    )
    axes.scatter(shown["x"][wrong, 0], shown["x"][wrong, 1], s=60, marker="x", color="black", linewidths=1.5)
    axes.set(aspect="equal", xlabel="x₀", ylabel="x₁")
    axes.set_title(title, fontsize=10)
    return figure
