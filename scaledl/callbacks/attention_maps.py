"""Where a model's attention looks."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from scaledl.callbacks.predictions import logits_of, save, show_image
from scaledl.interpret.attention import attention_layers, on_places, watched
from scaledl.tasks.base import Task


class AttentionMaps(pl.Callback):
    """Draws `plots/attention.png` at the end of the training: one validation image of each of the first classes, and
    beside it, for every attention layer, the image under what the layer attends to (bright).

    An attention layer is any with a method `attention_map` (see `attention_layers`); weights of tokens on tokens become
    places of the image by `on_places`.

    Args:
        num_images: how many are shown.
        num_layers: how many layers are shown, spread evenly from the first to the last.

    Raises:
        ValueError: at the start of the training, if the model has no such layer.
    """

    def __init__(self, num_images: int = 6, num_layers: int = 6):
        self.num_images, self.num_layers = num_images, num_layers
        self.run_dir = Path()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        if not attention_layers(pl_module.model, 1):
            name = type(pl_module.model).__name__
            raise ValueError(
                f"callbacks.attention_maps draws layers with a method attention_map, but {name} has none: remove it "
                "(~callbacks.attention_maps) or take a model with spatial attention"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        data = trainer.datamodule  # type: ignore[attr-defined]
        split = data.split("val") or data.split("train")
        samples = split.__getitems__(np.arange(len(split)))
        classes = samples["y"].unique()[: self.num_images]
        x = torch.stack([samples["x"][samples["y"] == label][0] for label in classes])  # (n, C, H, W)
        with watched(attention_layers(pl_module.model, self.num_layers), on_places) as maps:
            logits_of(trainer, pl_module, x)
        if trainer.is_global_zero:
            drawn = {name: torch.cat(parts) for name, parts in maps.items()}
            save(_figure(x, drawn), self.run_dir, "attention.png")


def _figure(x: Tensor, maps: dict[str, Tensor]) -> Figure:
    figure = Figure(figsize=(1.3 * (len(maps) + 1), 1.3 * len(x) + 0.7), layout="constrained")
    figure.suptitle("what each attention layer looks at: bright, over each map's own range", fontsize=10)
    axes = figure.subplots(len(x), len(maps) + 1, squeeze=False)
    side = tuple(x.shape[2:])
    for row, image in enumerate(x):
        show_image(axes[row, 0], image)
        for column, (name, of_layer) in enumerate(maps.items(), start=1):
            place = axes[row, column]
            show_image(place, image)
            shown = F.interpolate(of_layer[row][None, None], side, mode="bilinear")[0, 0]
            place.imshow(shown, cmap="inferno", alpha=0.6)
            if row == 0:
                height, width = of_layer.shape[1:]
                place.set_title(f"{_short(name)}\n{height}x{width}", fontsize=7)
    return figure


def _short(name: str) -> str:
    """`stages.0.1.attention.spatial` -> `0.1 spatial`."""
    parts = name.removeprefix("_orig_mod.").split(".")
    numbers = ".".join(part for part in parts if part.isdigit())
    return numbers if parts[-1].isdigit() else f"{numbers} {parts[-1]}".strip()
