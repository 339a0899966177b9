"""What the first convolution looks for, and where it finds it."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from scaledl.callbacks.predictions import logits_of, save, show_image
from scaledl.tasks.base import Task


class FeatureMaps(pl.Callback):
    """Draws `plots/feature_maps.png` at the end of the training: filters of the first convolution (red adds, blue takes
    away), and below each its answer to one validation image of each of the first classes.

    Args:
        num_filters: how many are shown.
        num_images: how many are shown.

    Raises:
        ValueError: at the start of the training, if the model has no convolution.
    """

    def __init__(self, num_filters: int = 12, num_images: int = 5):
        self.num_filters, self.num_images = num_filters, num_images
        self.run_dir = Path()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        if _first_convolution(pl_module) is None:
            raise ValueError(
                f"callbacks.feature_maps draws the first convolution, but {type(pl_module.model).__name__} has none: "
                "remove it (~callbacks.feature_maps) or take a convolutional model"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        convolution = _first_convolution(pl_module)
        assert convolution is not None
        data = trainer.datamodule  # type: ignore[attr-defined]
        split = data.split("val") or data.split("train")
        samples = split.__getitems__(np.arange(len(split)))
        classes = samples["y"].unique()[: self.num_images]
        x = torch.stack([samples["x"][samples["y"] == label][0] for label in classes])  # (n, C, H, W)
        maps: list[Tensor] = []
        handle = convolution.register_forward_hook(lambda module, inputs, output: maps.append(output.float().cpu()))
        logits_of(trainer, pl_module, x)
        handle.remove()
        weight = trainer.strategy.whole(convolution.weight).float().cpu()  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            save(_figure(weight[: self.num_filters], x, torch.cat(maps)), self.run_dir, "feature_maps.png")


def _first_convolution(task: Task) -> nn.Conv2d | None:
    return next((module for module in task.model.modules() if isinstance(module, nn.Conv2d)), None)


def _figure(filters: Tensor, x: Tensor, maps: Tensor) -> Figure:
    num_filters, num_images = len(filters), len(x)
    figure = Figure(figsize=(0.8 * (num_filters + 1), 0.8 * (num_images + 1) + 0.4), layout="constrained")
    figure.suptitle("filters of the first convolution, and their answers to the images on the left", fontsize=10)
    axes = figure.subplots(num_images + 1, num_filters + 1, squeeze=False)
    for one in axes.flat:
        one.set_axis_off()
    largest = filters.abs().max()
    for column, kernel in enumerate(filters, start=1):  # (C, k, k); over the colours, their sum
        axes[0, column].imshow(kernel.sum(0), cmap="RdBu_r", vmin=-largest, vmax=largest)
    for row in range(num_images):
        show_image(axes[row + 1, 0], x[row])
        for column in range(num_filters):
            answer = maps[row, column]
            bound = answer.abs().max()
            axes[row + 1, column + 1].imshow(answer, cmap="RdBu_r", vmin=-bound, vmax=bound)
    return figure
