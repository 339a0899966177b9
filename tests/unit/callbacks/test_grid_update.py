"""The knots of a KAN move without a change of what it computes; its splines are drawn."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import matplotlib.image
import numpy as np
import pytest
import torch
from torch import Tensor

from scaledl.callbacks.ema import EMA
from scaledl.callbacks.grid_update import GridUpdate
from scaledl.callbacks.splines import Splines, edge_functions
from scaledl.data.functions import Functions
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.kan import KAN
from scaledl.models.mlp import MLP
from scaledl.tasks.regression import Regression

Fit = Callable[..., pl.Trainer]


def regression(model: Any = KAN, **settings: Any) -> Regression:
    make = partial(model, 2, [3], 1, **settings)
    return Regression(ModelBuilder(make), partial(torch.optim.AdamW, lr=1e-2))


def functions(batch_size: int = 8) -> Functions:
    return Functions("exp_sin", batch_size, 8, num_train=100, num_val=10, num_test=0)


class Watch(pl.Callback):
    """What the model makes of the training samples at the end of each step, before and after the callback that it is
    put around, which must come between two of them."""

    def __init__(self) -> None:
        self.seen: dict[int, Tensor] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
        with torch.no_grad():
            x = trainer.datamodule.split("train").__getitems__(np.arange(100))["x"]
            self.seen[trainer.global_step] = pl_module.model(x)


def test_knots_move_at_their_steps_and_the_function_stays(fit: Fit) -> None:
    task, before, after = regression(grid_size=16, start_grid_size=4), Watch(), Watch()
    update = GridUpdate([2, 3], [4, 16], num_samples=50)
    fit(before, update, after, max_steps=4, task=task, data=functions())
    for step in (1, 4):
        assert torch.equal(before.seen[step], after.seen[step])
    for step in (2, 3):
        torch.testing.assert_close(after.seen[step], before.seen[step], atol=0.02, rtol=0)
    for layer in task.model.layers:
        knots = layer.knots
        assert ((knots.diff(dim=0)) > 0).all()
    x = functions().split("train").__getitems__(np.linspace(0, 99, 50).round().astype(int))["x"]
    inner = task.model.layers[0].knots[3:-3]
    assert (inner[0] < x.amin(0)).all()
    assert (x.amin(0) < inner[1]).all()  # 16 intervals over the range of the samples
    assert (inner[-2] < x.amax(0)).all()
    assert (x.amax(0) < inner[-1]).all()


def test_an_accumulated_step_is_one_step(fit: Fit) -> None:
    task, watch = regression(), Watch()
    fit(GridUpdate([2]), watch, max_steps=1, accumulation=2, task=task, data=functions(16))
    assert torch.equal(task.model.layers[0].knots, KAN(2, [3], 1).layers[0].knots)
    task = regression()
    fit(GridUpdate([2]), max_steps=2, accumulation=2, task=task, data=functions(16))
    assert not torch.equal(task.model.layers[0].knots, KAN(2, [3], 1).layers[0].knots)


def test_a_checkpoint_holds_the_knots(fit: Fit) -> None:
    task = regression()
    trainer = fit(GridUpdate([1]), max_steps=1, task=task, data=functions())
    saved = trainer.strategy.state_tensors(("weights",))["weights/model.layers.1.knots"]
    assert torch.equal(saved.parts[0][1], task.model.layers[1].knots)


def test_an_average_of_the_weights_begins_anew(fit: Fit) -> None:
    task = regression()
    trainer = fit(EMA(), GridUpdate([3]), max_steps=3, task=task, data=functions())
    for average, weight in zip(trainer.strategy.average, task.model.parameters(), strict=True):
        assert torch.equal(average, weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": []}, "must be rising numbers from 1 up"),
        ({"steps": [3, 2]}, r"steps=\[3, 2\] must be rising"),
        ({"steps": [0]}, r"steps=\[0\] must be rising"),
        ({"steps": [1, 2], "grid_sizes": [3]}, r"grid_sizes=\[3\] must be one number, from 1 up, for each of steps"),
        ({"steps": [1], "grid_eps": 0.0}, r"grid_eps=0.0 must lie in \(0, 1\]"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GridUpdate(**settings)


def test_models_that_do_not_fit_are_refused_before_the_training(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"grid_sizes has 9, but the model was built for model.grid_size=5: make it 9"):
        fit(GridUpdate([1], [9]), max_steps=1, task=regression(), data=functions())
    for callback, name in ((GridUpdate([1]), "grid_update"), (Splines(), "splines")):
        with pytest.raises(ValueError, match=f"callbacks.{name} is for a KAN, but MLP has no layers of splines"):
            fit(callback, max_steps=1, task=regression(MLP), data=functions())


def test_splines_are_drawn(fit: Fit, tmp_path: Path) -> None:
    fit(EMA(), Splines(num_splines=4), max_steps=2, task=regression(), data=functions())
    pixels = matplotlib.image.imread(tmp_path / "plots" / "splines.png")
    assert min(pixels.shape[:2]) > 100
    assert pixels[..., :3].std() > 0.02, "a blank picture"


def test_edges_add_up_to_the_layer() -> None:
    layer, x = KAN(4, [], 3).layers[0], 2 * torch.rand(20, 4) - 1
    edges = edge_functions(x, layer.base_weight, layer.spline_weight, layer.knots, layer.spline_order)
    torch.testing.assert_close(edges.sum(2), layer(x))
