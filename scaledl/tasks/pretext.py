"""Questions about an image that need no labels to be answered: which way up it is, and how its tiles were moved."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.base import Task
from scaledl.tasks.contrastive import Augmentation


class Rotation(Task):
    """By which of 0, 90, 180 and 270 degrees an image is turned (Gidaris et al. 2018, arXiv:1803.07728).

    Reads `x` (B, C, H, H); the model, which has four outputs, sees each image four times, turned by each.

    Args:
        augment: changes of x in training (data/augment.py), before it is turned.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        augment: dict[str, Augmentation] | None = None,
    ):
        super().__init__(model, optimizer, scheduler)
        self.augment = augment or {}

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = changed(self, batch["x"], self.augment)
        turned = torch.cat([torch.rot90(x, turns, (2, 3)) for turns in range(4)])  # (4B, C, H, H)
        return classified(self, turned, torch.arange(4, device=x.device).repeat_interleave(len(x)))


class Jigsaw(Task):
    """In which of some orders the tiles of an image stand (Noroozi & Favaro 2016, arXiv:1603.09246), the image being
    put together from them again (Carlucci et al. 2019, arXiv:1903.06864).

    Reads `x` (B, C, H, H). Orders are chosen to differ in as many places as can be, the untouched image first.

    Args:
        grid: tiles in a row and in a column.
        num_permutations: orders that the model, which has as many outputs, tells apart.
        augment: changes of x in training (data/augment.py), before it is cut.

    Raises:
        ValueError: there are not so many orders, or tiles do not fill the image.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        grid: int = 2,
        num_permutations: int = 24,
        augment: dict[str, Augmentation] | None = None,
    ):
        super().__init__(model, optimizer, scheduler)
        if grid not in (2, 3) or not 2 <= num_permutations <= math.factorial(grid**2):
            raise ValueError(
                f"grid={grid} and num_permutations={num_permutations}: take a grid of 2 or 3 and from 2 to "
                "(grid * grid)! orders: 24 with 2"
            )
        self.grid, self.augment = grid, augment or {}
        self.orders = distant_permutations(grid**2, num_permutations)  # (P, tiles)
        self._on: dict[torch.device, Tensor] = {}  # copies, one a device: a copy at each step would wait for it

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = changed(self, batch["x"], self.augment)
        y = self.noise.integers("order", len(self.orders), 1).squeeze(1)  # (B,)
        if x.device not in self._on:
            self._on[x.device] = self.orders.to(x.device)
        return classified(self, shuffled(x, self.grid, self._on[x.device][y]), y)


def changed(task: Task, x: Tensor, augment: dict[str, Augmentation]) -> Tensor:
    if task.model.training:
        for name, change in augment.items():
            x = change(x, task.noise, f"augment/{name}")
    return x


def classified(task: Task, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    logits = task.model(x).float()  # (B, answers)
    return {"loss": F.cross_entropy(logits, y), "acc": (logits.argmax(1) == y).float().mean()}


def shuffled(x: Tensor, grid: int, orders: Tensor) -> Tensor:
    """Images (B, C, H, H) whose tile at place i is the one that was at orders[:, i], of (B, grid²).

    Raises:
        ValueError: grid does not divide the image's height and width.
    """
    _, C, H, W = x.shape
    if H % grid or W % grid:
        raise ValueError(f"grid={grid} does not divide {H}x{W} images into equal tiles; choose a divisor")
    tiles = x.unfold(2, H // grid, H // grid).unfold(3, W // grid, W // grid)  # (B, C, grid, grid, h, w)
    moved = tiles.flatten(2, 3).take_along_dim(orders[:, None, :, None, None], dim=2).unflatten(2, (grid, grid))
    return moved.transpose(3, 4).reshape(-1, C, H, W)


def distant_permutations(length: int, count: int) -> Tensor:
    """(count, length) int64: the identity, then one by one the order whose nearest chosen one differs in most places
    (Noroozi & Favaro 2016, algorithm 1, on the least distance)."""
    every = np.array(list(itertools.permutations(range(length))), dtype=np.int8)
    chosen, nearest = [0], np.full(len(every), length + 1)
    while len(chosen) < count:
        nearest = np.minimum(nearest, (every != every[chosen[-1]]).sum(1))
        chosen.append(int(nearest.argmax()))
    return torch.from_numpy(every[chosen].astype(np.int64))
