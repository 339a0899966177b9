"""The 1,797 handwritten digits that scikit-learn ships: real images without a network."""

import numpy as np
from sklearn.datasets import load_digits

from scaledl.data.base import BatchDataset, Data
from scaledl.data.images import check_facts, stratified
from scaledl.data.samples import Samples

FACTS = {"num_classes": 10, "in_channels": 1, "image_size": 8, "in_dim": 64}


class Digits(Data):
    """Images x (B, 1, 8, 8) in [0, 1] of ten digits (Alpaydin & Kaynak 1998, UCI "Optical Recognition", its test part).

    Test: 20 %, stratified, scikit-learn's random_state=0, so that results compare with those of others; validation:
    10 % of the rest, likewise. The split does not depend on the seed.

    Args:
        num_classes, in_channels, image_size, in_dim: null = found out; models link to them.
        leave_out: classes that training does not see, but validation and test do.
        nudged: each split holds every image five times: as it is, and moved by one pixel to each of the four sides.

    Raises:
        ValueError: if leave_out names no class, or all.
    """

    def __init__(
        self,
        global_batch_size: int,
        micro_batch_size: int,
        num_classes: int | None = None,
        in_channels: int | None = None,
        image_size: int | None = None,
        in_dim: int | None = None,
        leave_out: list[int] | None = None,
        nudged: bool = False,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(global_batch_size, micro_batch_size, seed, num_workers)
        self.leave_out, self.nudged = leave_out or [], nudged
        if not set(self.leave_out) < set(range(10)):
            raise ValueError(f"data.leave_out={self.leave_out} must be some of the classes 0 .. 9, but not all")
        given = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size, "in_dim": in_dim}
        check_facts(given, FACTS, "scikit-learn's digits")

    def facts(self) -> dict[str, int]:
        return FACTS

    def describe(self) -> str:
        return "scikit-learn's digits, 8x8, 10 classes"

    def datasets(self) -> dict[str, BatchDataset]:
        images, labels = load_digits(return_X_y=True)
        x = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
        y = labels.astype(np.int64)
        rest, test = stratified(y, 0.2)
        train, val = (rest[part] for part in stratified(y[rest], 0.1))
        train = train[~np.isin(y[train], self.leave_out)]
        parts = {"train": train, "val": val, "test": test}
        return {name: Samples(*self._moved(x[part], y[part])) for name, part in parts.items()}

    def _moved(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not self.nudged:
            return x, y
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        moves = [padded[:, :, i : i + 8, j : j + 8] for i, j in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))]
        return np.concatenate(moves), np.tile(y, 5)
