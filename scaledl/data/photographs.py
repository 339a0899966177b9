"""Squares cut from the two photographs that scikit-learn ships: real colours without a network."""

import numpy as np
from sklearn.datasets import load_sample_images

from scaledl.data.base import BatchDataset, Data
from scaledl.data.images import check_facts
from scaledl.data.samples import Samples

SHARES = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}  # of the photographs' width, from the left


class Photographs(Data):
    """Images x (B, 3, S, S) in [0, 1] from a temple in China and a dahlia, 640x427, and which of the two y (B,) it is.

    Train, validation and test are three strips of each photograph, so no pixel is in two of them.

    Args:
        image_size: S.
        stride: from one square to the next; below S they overlap.
        num_classes, in_channels, in_dim: null = found out; models link to them.

    Raises:
        ValueError: the strips have no room for such squares, or a fact is given that is not so.
    """

    def __init__(
        self,
        global_batch_size: int,
        micro_batch_size: int,
        image_size: int = 32,
        stride: int = 16,
        num_classes: int | None = None,
        in_channels: int | None = None,
        in_dim: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(global_batch_size, micro_batch_size, seed, num_workers)
        if not 1 <= image_size <= 128 or stride < 1:
            raise ValueError(
                f"data.image_size={image_size} and data.stride={stride}: squares are 1 to 128 pixels wide, for so wide "
                "are the narrowest strips, and the next one begins at least 1 further"
            )
        self.image_size, self.stride = image_size, stride
        given = {"num_classes": num_classes, "in_channels": in_channels, "in_dim": in_dim}
        check_facts(given, self.facts(), "scikit-learn's photographs")

    def facts(self) -> dict[str, int]:
        return {"num_classes": 2, "in_channels": 3, "in_dim": 3 * self.image_size**2}

    def describe(self) -> str:
        return f"scikit-learn's two photographs in squares of {self.image_size}x{self.image_size}"

    def datasets(self) -> dict[str, BatchDataset]:
        images = load_sample_images().images
        return {split: self._squares(images, *share) for split, share in SHARES.items()}

    def _squares(self, images: list[np.ndarray], begin: float, end: float) -> Samples:
        found = []
        for image in images:
            strip = image[:, round(begin * image.shape[1]) : round(end * image.shape[1])]
            windows = np.lib.stride_tricks.sliding_window_view(strip, (self.image_size, self.image_size), axis=(0, 1))
            found.append(windows[:: self.stride, :: self.stride].reshape(-1, 3, self.image_size, self.image_size))
        y = np.repeat(np.arange(len(images)), [len(squares) for squares in found])
        return Samples(np.concatenate(found).astype(np.float32) / 255, y.astype(np.int64))
