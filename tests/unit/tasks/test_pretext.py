"""Rotations and jigsaw puzzles: what the model is shown is what the answer says."""

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.mlp import MLP
from scaledl.tasks.base import Task
from scaledl.tasks.pretext import Jigsaw, Rotation, distant_permutations, shuffled


def make(kind: type[Task], out_dim: int, **settings: object) -> Task:
    task = kind(ModelBuilder(partial(MLP, 64, [64], out_dim)), partial(torch.optim.AdamW, lr=3e-3), **settings)
    task.configure_model()
    task.noise = Noise(0, torch.arange(12))
    return task


def batch() -> dict[str, Tensor]:
    return {"x": torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


class Seen(torch.nn.Module):
    """Notes what it is shown, and knows nothing."""

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        self.logits = torch.zeros(len(x), 4, requires_grad=True)
        return self.logits


def test_each_image_is_shown_in_four_ways() -> None:
    task = make(Rotation, 4)
    task.model = Seen()
    task.objective(batch())["loss"].backward()
    answers = (task.model.logits.grad < 0).nonzero()[:, 1]  # the right answer is to grow
    for x, answer, image in zip(task.model.x, answers.tolist(), itertools.cycle(batch()["x"]), strict=False):
        upright = x[0]
        for _ in range(answer):  # back by a quarter turn: rows become columns
            upright = upright.T.flip(1)
        assert torch.equal(upright, image[0])
    assert answers.bincount().tolist() == [12] * 4


def test_tiles_come_from_where_the_order_says() -> None:
    x = torch.arange(2 * 36.0).reshape(2, 1, 6, 6)
    orders = torch.tensor([[2, 0, 1, 3, 5, 4, 8, 7, 6], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    moved = shuffled(x, 3, orders)
    for place, source in enumerate(orders[0].tolist()):
        (row, column), (of_row, of_column) = divmod(place, 3), divmod(source, 3)
        found = moved[0, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(found, x[0, 0, 2 * of_row : 2 * of_row + 2, 2 * of_column : 2 * of_column + 2])
    assert torch.equal(moved[1], x[1])
    with pytest.raises(ValueError, match=r"grid=4 does not divide 6x6 images"):
        shuffled(x, 4, orders)


def test_orders_are_far_from_one_another() -> None:
    chosen = distant_permutations(4, 4)
    assert chosen[0].tolist() == [0, 1, 2, 3]
    assert all((one != other).all() for one, other in itertools.combinations(chosen, 2))  # a Latin square
    assert len(distant_permutations(4, 24).unique(dim=0)) == 24


@pytest.mark.parametrize(("kind", "out_dim"), [(Rotation, 4), (Jigsaw, 24)])
def test_it_overfits_one_batch(kind: type[Task], out_dim: int) -> None:
    task = make(kind, out_dim)
    optimizer = task.configure_optimizers()["optimizer"]
    first = task.objective(batch())
    for _ in range(100):
        found = task.objective(batch())
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
    assert first["acc"] < 0.7
    assert found["acc"] == 1


def test_orders_that_do_not_exist_are_refused() -> None:
    for settings in ({"grid": 2, "num_permutations": 25}, {"grid": 4}):
        with pytest.raises(ValueError, match=rf"grid={settings['grid']} and num_permutations="):
            make(Jigsaw, 4, **settings)
