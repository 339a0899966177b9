"""The knots of a KAN's splines go to where the values are, and more of them as it learns."""

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from scaledl.distributed import group
from scaledl.distributed.state import names_of
from scaledl.layers.kan import KANLayer, knots_of_samples, refit
from scaledl.tasks.base import Task


class GridUpdate(pl.Callback):
    """Moves knots to the quantiles of each layer's inputs; splines stay the same as nearly as new knots allow (Liu et
    al. 2024, section 2.4 on grid extension, and appendix A).

    Every rank passes the same training samples, evenly spaced over the set, through the layers; rank 0 computes, all
    take its result, each for the share of the coefficients that it holds. So it serves every strategy. An average of
    the weights (callbacks.ema) begins anew, as it belongs to the old knots.

    Args:
        steps: the optimiser steps after which knots move.
        grid_sizes: intervals over the range of the inputs from each of these steps on, up to model.grid_size (see
            model.start_grid_size); null = model.grid_size at all of them.
        num_samples: how many training samples say where values lie.
        grid_eps: share of even spacing in the knots; the rest follows the quantiles.

    Raises:
        ValueError: if the settings contradict each other or, at the start of the training, do not fit the model.
    """

    def __init__(
        self,
        steps: list[int],
        grid_sizes: list[int] | None = None,
        num_samples: int = 1024,
        grid_eps: float = 0.5,
    ):
        if not steps or min(steps) < 1 or sorted(set(steps)) != list(steps):
            raise ValueError(f"callbacks.grid_update.steps={list(steps)} must be rising numbers from 1 up")
        if grid_sizes is not None and (len(grid_sizes) != len(steps) or min(grid_sizes) < 1):
            raise ValueError(
                f"callbacks.grid_update.grid_sizes={list(grid_sizes)} must be one number, from 1 up, for each of "
                f"steps={list(steps)}; or null"
            )
        if not 0 < grid_eps <= 1 or num_samples < 2:
            raise ValueError(
                f"callbacks.grid_update: grid_eps={grid_eps} must lie in (0, 1], num_samples={num_samples} be at least "
                "2; with grid_eps=0 knots would fall together where values repeat"
            )
        self.sizes = dict(zip(steps, grid_sizes or [None] * len(steps), strict=True))
        self.num_samples, self.grid_eps = num_samples, grid_eps

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        layers = kan_layers(pl_module, "grid_update")
        largest = max((size for size in self.sizes.values() if size), default=0)
        if largest > layers[0].grid_size:
            raise ValueError(
                f"callbacks.grid_update.grid_sizes has {largest}, but the model was built for model.grid_size="
                f"{layers[0].grid_size}: make it {largest}, and model.start_grid_size what it begins with"
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:  # type: ignore[override]
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.global_step not in self.sizes:
            return
        x = some_samples(trainer, "train", self.num_samples)
        layers = kan_layers(pl_module, "grid_update")
        for layer in layers:
            self._move(trainer, pl_module, layer, x)
            if layer is not layers[-1]:
                x = outputs_of(trainer, pl_module, layer, x)
        if trainer.strategy.average is not None:  # type: ignore[attr-defined]
            trainer.strategy.start_average()  # type: ignore[attr-defined]

    @torch.no_grad()
    def _move(self, trainer: pl.Trainer, task: Task, layer: KANLayer, x: Tensor) -> None:
        strategy: Any = trainer.strategy
        inside = self.sizes[trainer.global_step] or layer.grid_size
        name = names_of(task)[layer.spline_weight]
        coefficients = strategy.whole(layer.spline_weight).double().cpu()

        def on_new_knots() -> tuple[Tensor, Tensor]:
            knots = layer.knots.double().cpu()
            new_knots = knots_of_samples(x.double(), knots, inside, layer.spline_order, self.grid_eps)
            new_knots = new_knots.to(layer.knots.dtype)  # as they will be read
            return new_knots, refit(coefficients, knots, new_knots.double(), layer.spline_order)

        new_knots, coefficients = group.agreed(on_new_knots)
        layer.knots.copy_(new_knots)
        held = strategy.pieces(strategy.masters()).get(name)
        for offsets, part in held.parts if held else []:
            part.copy_(coefficients[tuple(slice(o, o + n) for o, n in zip(offsets, part.shape, strict=True))])
        strategy.refresh()


def kan_layers(task: Task, callback: str) -> list[KANLayer]:
    """The layers of a KAN, first to last.

    Raises:
        ValueError: the model is none.
    """
    layers: Any = getattr(task.model, "layers", [])
    if not len(layers) or not all(hasattr(layer, "knots") for layer in layers):
        raise ValueError(
            f"callbacks.{callback} is for a KAN, but {type(task.model).__name__} has no layers of splines: remove it "
            f"(~callbacks.{callback}) or take model=kan"
        )
    return list(layers)


def some_samples(trainer: pl.Trainer, split: str, num_samples: int) -> Tensor:
    """x (N, in_dim) of samples evenly spaced over a split: the same on every rank."""
    dataset = trainer.datamodule.split(split)  # type: ignore[attr-defined]
    chosen = np.unique(np.linspace(0, len(dataset) - 1, num_samples).round().astype(np.int64))
    return dataset.__getitems__(chosen)["x"].flatten(1)


@torch.no_grad()
def outputs_of(trainer: pl.Trainer, task: Task, layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer makes of x (N, in_dim), on the host; all ranks ask together."""
    precision = trainer.strategy.precision_plugin
    size = trainer.datamodule.micro_batch_size  # type: ignore[attr-defined]
    with precision.forward_context():
        return torch.cat([layer(precision.convert_input(part.to(task.device))).float().cpu() for part in x.split(size)])
