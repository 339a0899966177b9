"""What an autoencoder is shown, and what it draws of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from scaledl.callbacks.predictions import save
from scaledl.distributed.noise import Noise


class Reconstructions(pl.Callback):
    """Draws `plots/reconstructions.png` when training ends: held-out images, as the model sees them, and as it draws
    them.

    Args:
        num_images: how many are shown.
    """

    def __init__(self, num_images: int = 12):
        self.num_images = num_images
        self.run_dir = Path()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        x = held_out(trainer, self.num_images)["x"]
        with evaluating(trainer, pl_module):
            noise = Noise(pl_module.model_builder.seed, torch.arange(len(x), device=pl_module.device))
            shown, drawn = (t.float().cpu() for t in pl_module.reconstruct(x.to(pl_module.device), noise))
        rows = {"images": x, "drawn again": drawn} if x.equal(shown) else {"images": x, "spoilt": shown, "drawn": drawn}
        if trainer.is_global_zero:
            save(_figure(rows, f"after {trainer.global_step:,} steps"), self.run_dir, "reconstructions.png")


@contextmanager
def evaluating(trainer: pl.Trainer, task: Any) -> Iterator[None]:
    """As in an evaluation: averaged weights where there are some, no dropout, no gradients. All ranks enter it."""
    was_training = task.training
    task.eval()
    try:
        with torch.no_grad(), trainer.strategy.averaged(), trainer.precision_plugin.forward_context():  # type: ignore[attr-defined]
            yield
    finally:
        task.train(was_training)


def held_out(trainer: pl.Trainer, count: int) -> dict[str, Tensor]:
    """The first samples of the test split, or of the next one there is."""
    splits = dict(trainer.datamodule.splits())  # type: ignore[attr-defined]
    split = next(splits[name] for name in ("test", "val", "train") if name in splits)
    return split.__getitems__(np.arange(min(count, len(split))))


def sheet(images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Images (rows, columns, C, H, W) as one, (rows · H, columns · W) or with C behind; low is white, high is ink."""
    framed = torch.nn.functional.pad(((images - low) / (high - low)).clamp(0, 1), (1, 1, 1, 1))
    return framed.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).squeeze(-1)


def _figure(rows: dict[str, Tensor], title: str) -> Figure:
    low, high = rows["images"].aminmax()
    figure = Figure(figsize=(0.6 * len(rows["images"]) + 1, 0.7 * len(rows) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for axes, (name, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        axes.imshow(sheet(images[None], low, high), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(name, fontsize=8)
        axes.set_axis_off()
    return figure
