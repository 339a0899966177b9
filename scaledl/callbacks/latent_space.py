"""How codes lie, and what each of their numbers stands for."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from scaledl.callbacks.predictions import save
from scaledl.callbacks.reconstructions import evaluating, held_out, sheet


class LatentSpace(pl.Callback):
    """Draws `plots/latent.png` when training ends.

    On the left the codes of held-out images on their two principal axes, in the colours of the classes; on the right
    one image again and again, a row for each of the dimensions in which codes spread most, while this dimension goes
    from -3 to 3 of its standard deviations.

    Args:
        num_images: whose codes are shown.
        num_dims: rows on the right.
        num_steps: columns on the right.
    """

    def __init__(self, num_images: int = 1_000, num_dims: int = 8, num_steps: int = 9):
        self.num_images, self.num_dims, self.num_steps = num_images, num_dims, num_steps
        self.run_dir = Path()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        samples = held_out(trainer, self.num_images)
        x, size = samples["x"], trainer.datamodule.micro_batch_size  # type: ignore[attr-defined]
        with evaluating(trainer, pl_module):
            z = torch.cat(
                [pl_module.codes(part.to(pl_module.device)).cpu() for part in x.split(size)]
            )  # (N, latent_dim)
            walk, dims = walks(z, self.num_dims, self.num_steps)
            drawn = pl_module.decoded(walk.flatten(0, 1).to(pl_module.device)).float().cpu()
        if trainer.is_global_zero:
            drawn = drawn.unflatten(0, walk.shape[:2])
            save(_figure(z, samples.get("y"), drawn, dims, x.aminmax()), self.run_dir, "latent.png")


def walks(z: Tensor, num_dims: int, num_steps: int) -> tuple[Tensor, list[int]]:
    """Codes (rows, steps, latent_dim) like the first of z (N, latent_dim), and the dimension that each row walks."""
    std, mean = torch.std_mean(z, dim=0)
    dims = std.argsort(descending=True)[:num_dims].tolist()
    walk = z[0].repeat(len(dims), num_steps, 1)
    for row, dim in enumerate(dims):
        walk[row, :, dim] = mean[dim] + std[dim] * torch.linspace(-3, 3, num_steps)
    return walk, dims


def _figure(z: Tensor, y: Tensor | None, drawn: Tensor, dims: list[int], bounds: tuple[Tensor, Tensor]) -> Figure:
    figure = Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    centred = z - z.mean(0)
    flat = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T  # (N, 2)
    if flat.shape[1] == 1:  # codes of one number
        flat = torch.cat([flat, torch.zeros_like(flat)], 1)
    points = left.scatter(*flat.T, c=y, cmap="tab10" if y is not None and y.max() < 10 else "viridis", s=8)
    if y is not None:
        figure.colorbar(points, ax=left, label="class")
    left.set_title("codes of held-out images, on their principal axes", fontsize=9)
    right.imshow(sheet(drawn, *bounds), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    height = drawn.shape[3] + 2
    right.set_yticks([height * (row + 0.5) for row in range(len(dims))], [f"z[{dim}]" for dim in dims])
    right.set_xticks([])
    right.set_title("one code, each dimension from -3 to 3 of its standard deviations", fontsize=9)
    return figure
