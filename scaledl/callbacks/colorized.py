"""Images as they were, as the model saw them, and as it coloured them."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure

from scaledl.callbacks.predictions import save
from scaledl.callbacks.reconstructions import evaluating, held_out, sheet


class Colorized(pl.Callback):
    """Draws `plots/colorized.png` when training ends: held-out images, their light, and the colours made of it.

    Args:
        num_images: how many are shown.
    """

    def __init__(self, num_images: int = 12):
        self.num_images = num_images
        self.run_dir = Path()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        x = held_out(trainer, 1_000_000)["x"]
        x = x[torch.linspace(0, len(x) - 1, min(self.num_images, len(x))).long()].to(pl_module.device)
        with evaluating(trainer, pl_module):
            rows = {"image": x, "light": pl_module.visible(x).expand_as(x), "coloured": pl_module.paint(x)}
        if trainer.is_global_zero:
            figure = Figure(figsize=(0.9 * len(x) + 0.4, 3.6), layout="constrained")
            for axes, (name, images) in zip(figure.subplots(3, 1), rows.items(), strict=True):
                axes.imshow(sheet(images[None].float().cpu(), *x.float().cpu().aminmax()))
                axes.set_title(name, fontsize=8)
                axes.set_axis_off()
            save(figure, self.run_dir, "colorized.png")
