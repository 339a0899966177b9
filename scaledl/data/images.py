"""Labelled images from their published files, from folders of pictures or from the Hugging Face Hub."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from scaledl.data.base import BatchDataset, Data
from scaledl.data.image_sources import Parts, Pictures, Pixels, decoded, read_source, settle


class ImageSamples:
    """The images of one split, each channel brought from `mean` and `std` (of values in [0, 1]) to 0 and 1."""

    def __init__(self, pixels: Pixels, y: np.ndarray, chosen: np.ndarray, mean: list[float], std: list[float]):
        self.pixels, self.chosen, self.y = pixels, chosen, torch.from_numpy(y[chosen])
        self.scale = 1 / (255 * torch.tensor(std))[:, None, None]
        self.shift = -(torch.tensor(mean) / torch.tensor(std))[:, None, None]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitems__(self, indices: np.ndarray) -> dict[str, Tensor]:
        pixels = torch.from_numpy(self.pixels[self.chosen[indices]])  # (B, C, S, S) uint8
        return {"x": pixels.float().mul_(self.scale).add_(self.shift), "y": self.y[indices]}


def stratified(y: np.ndarray, fraction: float) -> list[np.ndarray]:
    """Indices of the rest, and of a share of the samples with as much of each class; the labels alone decide."""
    return train_test_split(np.arange(len(y)), test_size=fraction, stratify=y, random_state=0)


def check_facts(given: dict[str, Any], found: dict[str, Any], what: str) -> None:
    """Raises ValueError if a fact is given that is not so."""
    for name, fact in found.items():
        if given[name] not in (None, fact):
            raise ValueError(f"data.{name}={given[name]}, but {what} have {name}={fact}; set it to null or {fact}")


class Images(Data):
    """Images x (B, C, S, S), standardised over the training part in each channel, and their classes y (B,).

    Args:
        path: a folder with the published files of MNIST or its like (gzipped or not), of CIFAR-10 or CIFAR-100 (python
            or binary version), or with a folder of pictures for each class, which may stand in train/, val/ and test/.
        dataset: where there is no path: a name on the Hugging Face Hub, with `dataset_config` and the two columns.
        test_fraction: share of the images for the test where the source has only one part. As much of each class, and
            always the same images. 0: no test.
        val_fraction: likewise of what is left to train on, where the source has no part for validation.
        num_classes, in_dim: null = found out; models link to them.
        in_channels: null = found out; 1 makes pictures gray, 3 colour.
        image_size: null = found out; pictures of another size are scaled and cut around their centre.
        class_names: null = the source's where it has any, else numbers.
        mean, std: of each channel, in [0, 1]; null = found out, from up to 10,000 training images.
        cache_bytes: pictures that take at most so many when decoded are decoded once, into a file of `cache_dir`;
            larger ones whenever they are read, by `num_workers` processes.

    Raises:
        ValueError: images, labels or settings do not fit each other.
    """

    def __init__(
        self,
        global_batch_size: int,
        micro_batch_size: int,
        path: str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        image_column: str = "image",
        label_column: str = "label",
        test_fraction: float = 0.2,
        val_fraction: float = 0.1,
        num_classes: int | None = None,
        in_channels: int | None = None,
        image_size: int | None = None,
        in_dim: int | None = None,
        class_names: list[str] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        cache_dir: str = "~/.cache/scaledl",
        cache_bytes: int = 4_000_000_000,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(global_batch_size, micro_batch_size, seed, num_workers)
        for name, fraction in (("test_fraction", test_fraction), ("val_fraction", val_fraction)):
            if not 0 <= fraction < 1:
                raise ValueError(f"data.{name}={fraction} must lie in [0, 1); 0 goes without this split")
        if in_channels not in (None, 1, 3):
            raise ValueError(f"data.in_channels={in_channels}: images have 1 (gray) or 3 (colour); null finds it out")
        self.source = (Path(path).expanduser() if path else None, dataset, dataset_config, image_column, label_column)
        self.name = str(self.source[0] or dataset)
        self.fractions = {"test": test_fraction, "val": val_fraction}
        self.given = {"in_channels": in_channels, "image_size": image_size, "in_dim": in_dim}
        self.num_classes, self.class_names, self.mean, self.std = num_classes, class_names, mean, std
        self.cache_dir, self.cache_bytes = Path(cache_dir).expanduser() / "images", cache_bytes
        self.found: dict[str, int] = {}

    def prepare(self) -> None:
        if self._datasets is not None:
            return
        parts, names = read_source(*self.source)
        if any(isinstance(pixels, Pictures) for pixels, _ in parts.values()):
            settle(parts, self.given["image_size"], self.given["in_channels"])
            parts = {part: (self._kept(pixels), y) for part, (pixels, y) in parts.items()}
        channels, height, width = next(iter(parts.values()))[0][np.arange(1)].shape[1:]
        if height != width:
            raise ValueError(f"the images of {self.name} are {height}x{width}, but must be squares")
        self.found = {"in_channels": channels, "image_size": height, "in_dim": channels * height * width}
        check_facts(self.given, self.found, f"the images of {self.name}")
        self._settle_classes(parts, names)
        splits = self._divided(parts)
        if self.mean is None or self.std is None:
            mean, std = _statistics(splits["train"][0], splits["train"][2])
            self.mean, self.std = self.mean or mean, self.std or std
        if not len(self.mean) == len(self.std) == channels or min(self.std) <= 0:
            raise ValueError(
                f"data.mean={self.mean} and data.std={self.std}: give a number for each of the {channels} channels, "
                "std above 0; null finds them out"
            )
        self._datasets = {split: ImageSamples(*found, self.mean, self.std) for split, found in splits.items()}

    def facts(self) -> dict[str, Any]:
        own = {"num_classes": self.num_classes, "class_names": self.class_names, "mean": self.mean, "std": self.std}
        return self.found | own

    def describe(self) -> str:
        size = self.found["image_size"]
        return f"{self.name}, {self.found['in_channels']}x{size}x{size}, {self.num_classes} classes"

    def datasets(self) -> dict[str, BatchDataset]:
        self.prepare()
        assert self._datasets is not None
        return self._datasets

    def _kept(self, pictures: Any) -> Pixels:
        size = len(pictures) * pictures.channels * pictures.size**2
        return decoded(pictures, self.cache_dir) if size <= self.cache_bytes else pictures

    def _settle_classes(self, parts: Parts, names: list[str] | None) -> None:
        largest = max(int(y.max()) for _, y in parts.values())
        self.class_names = self.class_names or names or [str(label) for label in range(self.num_classes or largest + 1)]
        known = len(names or self.class_names)
        if len(self.class_names) != known or self.num_classes not in (None, known):
            raise ValueError(
                f"data.num_classes={self.num_classes} and {len(self.class_names)} data.class_names, but {self.name} "
                f"has {known} classes; set both to null"
            )
        self.num_classes = known
        for part, (_, y) in parts.items():
            if (wrong := y[(y < 0) | (y >= known)]).size:
                raise ValueError(
                    f"the {part} part of {self.name} has {len(wrong)} labels out of range, such as {wrong[0]}: they "
                    f"must lie in [0, {known})"
                )

    def _divided(self, parts: Parts) -> dict[str, tuple[Pixels, np.ndarray, np.ndarray]]:
        """Pixels, labels and chosen indices of each split."""
        whole = len(parts) == 1  # MNIST's test files alone, say
        splits = {"train" if whole else part: (*found, np.arange(len(found[1]))) for part, found in parts.items()}
        for split, fraction in self.fractions.items():
            if fraction and split not in splits and (whole or split == "val"):
                pixels, y, chosen = splits["train"]
                self._check_divisible(split, y[chosen])
                rest, held_out = (np.sort(chosen[part]) for part in stratified(y[chosen], fraction))
                splits |= {"train": (pixels, y, rest), split: (pixels, y, held_out)}
        return splits

    def _check_divisible(self, split: str, y: np.ndarray) -> None:
        labels, counts = np.unique(y, return_counts=True)
        held_out = math.ceil(len(y) * self.fractions[split])
        if counts.min() < 2 or not len(labels) <= held_out <= len(y) - len(labels):
            assert self.class_names is not None
            rarest = self.class_names[labels[counts.argmin()]]
            raise ValueError(
                f"data.{split}_fraction={self.fractions[split]} of {len(y)} images is {held_out}, which must hold one "
                f"of each of the {len(labels)} classes and leave one ({rarest!r} has {counts.min()} in all); bring "
                "more images, change it, or set it to 0 to go without this split"
            )


def _statistics(pixels: Pixels, chosen: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in [0, 1], over images that stand at equal distances."""
    chosen = chosen[:: -(-len(chosen) // (1_000 if isinstance(pixels, Pictures) else 10_000))]
    sums = []
    for some in np.array_split(chosen, -(-len(chosen) // 256)):
        x = pixels[some] / np.float32(255)  # (n, C, S, S)
        sums.append([x.sum((0, 2, 3), dtype=np.float64), np.square(x).sum((0, 2, 3), dtype=np.float64)])
    mean, square = np.sum(sums, axis=0) / (len(chosen) * x[0, 0].size)
    std = np.sqrt(np.maximum(square - mean**2, 0)).round(4)
    return mean.round(4).tolist(), np.where(std > 0, std, 1).tolist()
