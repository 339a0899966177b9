"""The functions that a KAN has learned, one picture for each edge."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from scaledl.callbacks.grid_update import kan_layers, outputs_of, some_samples
from scaledl.callbacks.predictions import save
from scaledl.layers.kan import KANLayer, bspline_basis
from scaledl.tasks.base import Task


class Splines(pl.Callback):
    """Draws `plots/splines.png` at the end of the training: a row for each layer, in it the edges whose functions vary
    most, over the values that reach them; knots are the marks below.

    Args:
        num_splines: how many of a layer are shown.
        num_samples: how many training samples say which values reach a layer.

    Raises:
        ValueError: at the start of the training, if the model is no KAN.
    """

    def __init__(self, num_splines: int = 10, num_samples: int = 1024):
        self.num_splines, self.num_samples = num_splines, num_samples
        self.run_dir = Path()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        kan_layers(pl_module, "splines")

    def on_train_end(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        rows = []
        x = some_samples(trainer, "train", self.num_samples)
        with trainer.strategy.averaged():  # type: ignore[attr-defined]
            for layer in kan_layers(pl_module, "splines"):
                base, spline = (
                    trainer.strategy.whole(weight).float().cpu()  # type: ignore[attr-defined]
                    for weight in (layer.base_weight, layer.spline_weight)
                )
                rows.append(_strongest(layer, base, spline, x, self.num_splines))
                x = outputs_of(trainer, pl_module, layer, x)
        if trainer.is_global_zero:
            title = f"{type(pl_module.model).__name__} after {trainer.global_step:,} steps: the edges that vary most"
            save(_figure(rows, title), self.run_dir, "splines.png")


def edge_functions(x: Tensor, base: Tensor, spline: Tensor, knots: Tensor, order: int) -> Tensor:
    """What each edge makes of its input: x (N, in), base (out, in), spline (out, n, in) -> (N, out, in)."""
    splines = torch.einsum("bni,oni->boi", bspline_basis(x, knots, order), spline)
    return F.silu(x)[:, None] * base + splines


Edge = tuple[int, int, np.ndarray, np.ndarray, np.ndarray]  # in, out, x, its function, knots


def _strongest(layer: KANLayer, base: Tensor, spline: Tensor, x: Tensor, count: int) -> list[Edge]:
    knots, order = layer.knots.float().cpu(), layer.spline_order
    strength = edge_functions(x, base, spline, knots, order).std(0)  # (out, in)
    chosen = strength.flatten().argsort(descending=True)[:count].sort().values.tolist()
    lines = x.amin(0) + torch.linspace(0, 1, 200)[:, None] * (x.amax(0) - x.amin(0))  # (200, in)
    functions = edge_functions(lines, base, spline, knots, order)
    edges: list[Edge] = []
    for out, inp in (divmod(edge, x.shape[1]) for edge in chosen):
        line, inside = lines[:, inp], knots[:, inp]
        inside = inside[(inside >= line[0]) & (inside <= line[-1])]
        edges.append((inp, out, line.numpy(), functions[:, out, inp].numpy(), inside.numpy()))
    return edges


def _figure(rows: list[list[Edge]], title: str) -> Figure:
    columns = max(map(len, rows))
    figure = Figure(figsize=(1.4 * columns + 0.5, 1.5 * len(rows) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for one in axes.flat:
        one.set_visible(False)
    for depth, edges in enumerate(rows):
        low, high = (bound([edge[3] for edge in edges]) for bound in (np.min, np.max))
        for one, (inp, out, x, y, knots) in zip(axes[depth], edges, strict=False):
            one.set_visible(True)
            one.plot(x, y, linewidth=1.5)
            one.plot(knots, np.full(len(knots), low), "|", color="0.6", markersize=4)
            one.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
            one.tick_params(labelsize=6)
            one.set_title(f"{inp} → {out}", fontsize=8)
        axes[depth, 0].set_ylabel(f"layer {depth}", fontsize=8)
    return figure
