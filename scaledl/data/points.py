"""Points in the plane, in shapes that show what a classifier can and cannot separate."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from scaledl.data.base import BatchDataset, Data
from scaledl.data.samples import Samples

Kind = Literal["blobs", "circles", "moons", "xor", "spirals"]
TWO_CLASSES = ("circles", "moons", "xor")


class Points(Data):
    """Equally many points of each class on noise-free curves, plus Gaussian noise; drawn from the seed alone.

    Args:
        kind: `blobs` lie around the corners of a regular polygon (linearly separable), `circles` have radius 1 and 0.5,
            `moons` are two half circles in one another, `xor` has opposite corners of the square [-1, 1]² in one class,
            `spirals` are arms that turn three quarters around each other.
        num_samples: of all splits together.
        noise: standard deviation of both coordinates.
        num_classes: of blobs and spirals, null = 3; the other kinds have 2.
        val_fraction: share of the points for validation.
        test_fraction: share of the points for the test.
        in_dim: null = 2, what it is.
    """

    def __init__(
        self,
        kind: Kind,
        global_batch_size: int,
        micro_batch_size: int,
        num_samples: int = 2000,
        noise: float = 0.1,
        num_classes: int | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        in_dim: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(global_batch_size, micro_batch_size, seed, num_workers)
        if noise < 0:
            raise ValueError(f"data.noise={noise} is a standard deviation: it must be at least 0")
        if num_classes is not None and (num_classes < 2 or (kind in TWO_CLASSES and num_classes != 2)):
            rule = "has 2 classes" if kind in TWO_CLASSES else "needs at least 2 classes"
            raise ValueError(
                f"data.num_classes={num_classes}, but {kind} {rule}; set it to null or 2, or take kind=spirals"
            )
        if in_dim not in (None, 2):
            raise ValueError(f"data.in_dim={in_dim}, but points of the plane have 2 coordinates; set it to null")
        self.kind, self.noise = kind, noise
        self.num_classes = num_classes or (2 if kind in TWO_CLASSES else 3)
        held_out = {"val": round(num_samples * val_fraction), "test": round(num_samples * test_fraction)}
        self.sizes = {"train": num_samples - sum(held_out.values()), **held_out}
        if min(val_fraction, test_fraction) < 0 or self.sizes["train"] < self.num_classes:
            raise ValueError(
                f"data.num_samples={num_samples}, val_fraction={val_fraction} and test_fraction={test_fraction} leave "
                f"{self.sizes} points, and training needs at least {self.num_classes}, one of each class: take more "
                "samples or smaller fractions, from 0 up"
            )

    def facts(self) -> dict[str, int]:
        return {"num_classes": self.num_classes, "in_dim": 2}

    def describe(self) -> str:
        return f"{self.kind}, {self.num_classes} classes, noise {self.noise:g}"

    def datasets(self) -> dict[str, BatchDataset]:
        """Consecutive pieces of one draw: points are independent, and classes alternate, so each has its share."""
        rng = np.random.default_rng(self.seed)
        y = np.arange(sum(self.sizes.values())) % self.num_classes
        x = _CURVES[self.kind](rng.random(len(y)), y, self.num_classes)
        x = (x + self.noise * rng.standard_normal(x.shape)).astype(np.float32)
        found: dict[str, BatchDataset] = {}
        start = 0
        for split, size in self.sizes.items():
            if size:
                found[split] = Samples(x[start : start + size], y[start : start + size])
            start += size
        return found


def _polar(radius: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Points (N, 2) from radius and angle (N,), the angle in turns."""
    return np.stack([radius * np.cos(2 * np.pi * turn), radius * np.sin(2 * np.pi * turn)], axis=1)


# Each gives noise-free points (N, 2) from t (N,) uniform in [0, 1), the place along the curve of class y (N,).


def _blobs(t: np.ndarray, y: np.ndarray, num_classes: int) -> np.ndarray:
    return _polar(np.ones_like(t), y / num_classes)


def _circles(t: np.ndarray, y: np.ndarray, num_classes: int) -> np.ndarray:
    return _polar(np.where(y == 0, 1.0, 0.5), t)


def _moons(t: np.ndarray, y: np.ndarray, num_classes: int) -> np.ndarray:
    upper = _polar(np.ones_like(t), t / 2) - [0.5, 0.25]
    return np.where(y[:, None] == 0, upper, -upper)


def _xor(t: np.ndarray, y: np.ndarray, num_classes: int) -> np.ndarray:
    first = np.where(t < 0.5, -1.0, 1.0)
    return np.stack([first, np.where(y == 0, first, -first)], axis=1)


def _spirals(t: np.ndarray, y: np.ndarray, num_classes: int) -> np.ndarray:
    radius = 0.1 + 0.9 * t
    return _polar(radius, 0.75 * radius + y / num_classes)


_CURVES: dict[str, Callable[..., np.ndarray]] = {
    "blobs": _blobs,
    "circles": _circles,
    "moons": _moons,
    "xor": _xor,
    "spirals": _spirals,
}
