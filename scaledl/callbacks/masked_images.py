"""What a masked autoencoder saw of images, and what it made of that."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from scaledl.callbacks.predictions import save
from scaledl.distributed.noise import Noise
from scaledl.tasks.masked_autoencoding import MaskedAutoencoding


class MaskedImages(pl.Callback):
    """Draws `plots/masked_images.png` when training ends: validation images, what is shown of them, and the rest
    painted by the model.

    Args:
        num_images: how many.
    """

    def __init__(self, num_images: int = 12):
        self.num_images = num_images
        self.run_dir = Path()

    def on_train_end(self, trainer: pl.Trainer, pl_module: MaskedAutoencoding) -> None:  # type: ignore[override]
        data = trainer.datamodule  # type: ignore[attr-defined]
        dataset = data.split("val") or data.split("train")
        x = dataset.__getitems__(np.arange(min(self.num_images, len(dataset))))["x"].to(pl_module.device)
        noise = Noise(pl_module.model_builder.seed, torch.arange(len(x), device=x.device))
        precision, was_training = trainer.strategy.precision_plugin, pl_module.training
        pl_module.eval()
        with trainer.strategy.averaged(), precision.forward_context():  # type: ignore[attr-defined]
            masked, painted = pl_module.paint(precision.convert_input(x), noise)
        pl_module.train(was_training)
        if trainer.is_global_zero:
            save(_figure(x.float().cpu(), masked.cpu(), painted.cpu()), self.run_dir, "masked_images.png")


def _figure(x: Tensor, masked: Tensor, painted: Tensor) -> Figure:
    columns = len(x)
    figure = Figure(figsize=(0.9 * columns + 1.2, 3.2), layout="constrained")
    axes = figure.subplots(3, columns, squeeze=False)
    colours = colormaps["gray_r"].with_extremes(bad="tab:blue")
    for row, (name, images) in enumerate((("image", x), ("shown", masked), ("painted", painted))):
        for column in range(columns):
            low, high = x[column].amin(), x[column].amax()  # of the image itself, so that the three rows compare
            scaled = ((images[column] - low) / (high - low).clamp(min=1e-8)).clamp(0, 1).movedim(0, -1)
            place = axes[row, column]
            if scaled.shape[-1] == 1:
                place.imshow(scaled[..., 0], cmap=colours, vmin=0, vmax=1)
            else:
                place.imshow(scaled.nan_to_num(0.5))
            place.set(xticks=[], yticks=[])
        axes[row, 0].set_ylabel(name)
    return figure
