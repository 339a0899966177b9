"""How good generated images are, by the features of a small classifier that learned the same data.

Without a network trained on millions of photographs, which a Frechet distance usually takes (Heusel et al. 2017), any
labelled images can have a judge of their own. Distances of one judge compare with each other, not with another's.
"""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.data.base import BatchDataset
from scaledl.data.sampler import TrainBatches
from scaledl.distributed.parallelize import initialize
from scaledl.optim.schedule import cosine

NUM_FEATURES = 64
MAX_IMAGES = 20_000  # that a judge learns from and compares with; more would change a distance little
BATCH_SIZE, EPOCHS, MAX_STEPS = 64, 30, 1_500
FORMAT = 2  # to be raised with any change of what a judge is


class Judge(nn.Module):
    """Convolution, relu and pooling down to maps of at most 3x3, then 64 features, then the classes.

    `scale` makes the variances of all features add up to 1,000 over the images that it learned from, so that a distance
    is in thousandths of that, however large the network's numbers happen to be.
    """

    scale: Tensor

    def __init__(self, in_channels: int, image_size: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, width = in_channels, 32
        while image_size > 3:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            channels, width, image_size = width, min(2 * width, 128), image_size // 2
        self.stages = nn.Sequential(*layers)
        self.features = nn.Linear(channels * image_size**2, NUM_FEATURES)
        self.head = nn.Linear(NUM_FEATURES, num_classes)
        self.register_buffer("scale", torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 64) and logits (B, num_classes) of images x (B, C, H, W)."""
        features = self.features(self.stages(x).flatten(1)).relu()
        return features * self.scale, self.head(features)


@dataclass
class Seen:
    """Images as a judge sees them: features (N, 64) float64, and the probability of each class (N, num_classes)."""

    features: Tensor
    probabilities: Tensor


@torch.no_grad()
def see(judge: Judge, x: Tensor) -> Seen:
    found = [judge(part.to(judge.head.weight.device)) for part in x.float().split(512)]
    features, logits = (torch.cat(parts).double().cpu() for parts in zip(*found, strict=True))
    return Seen(features, logits.softmax(1))


def images_of(dataset: BatchDataset, labelled: bool = True) -> tuple[Tensor, Tensor]:
    """Images x (N, C, H, W) and labels y (N,) of a split, at equal distances where there are too many; not `labelled`:
    all in one class.

    Raises:
        ValueError: the samples are no images, or have no labels.
    """
    samples = dataset.__getitems__(np.arange(len(dataset))[:: -(-len(dataset) // MAX_IMAGES)])
    x, y = samples.get("x"), samples.get("y")
    if x is not None and not labelled:
        y = torch.zeros(len(x), dtype=torch.int64)
    if x is None or x.ndim != 4 or y is None or y.dtype != torch.int64:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in samples.items())
        raise ValueError(
            f"samples stand beside images x (N, C, H, W) with classes y (N,), but this data gives {shapes}; take such "
            "data, or remove callbacks.sample_grid"
        )
    return x, y


def trained_judge(x: Tensor, y: Tensor, num_classes: int, seed: int = 0, device: torch.device | str = "cpu") -> Judge:
    """A judge of images x (N, C, H, W) and classes y (N,): a function of these and the seed, kept on this machine.

    It lies in `judges` in the cache directory (SCALEDL_CACHE, else ~/.cache/scaledl).
    """
    with torch.device("meta"):  # where building draws no random numbers
        judge = Judge(x.shape[1], x.shape[2], num_classes)
    judge.to_empty(device="cpu")
    hashed = hashlib.sha256(
        f"{FORMAT} {tuple(x.shape)} {num_classes} {seed} {BATCH_SIZE} {EPOCHS} {MAX_STEPS}".encode()
    )
    for tensor in (x, y):
        hashed.update(tensor.contiguous().numpy().data)
    folder = Path(os.environ.get("SCALEDL_CACHE", "~/.cache/scaledl")).expanduser() / "judges"
    kept = folder / f"{hashed.hexdigest()[:32]}.pt"
    if kept.is_file():
        judge.load_state_dict(torch.load(kept, weights_only=True))
        return judge.to(device).eval()
    initialize(judge, seed)
    _train(judge.to(device), x, y, seed)
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{kept.name}.{os.getpid()}.tmp"
    torch.save({name: tensor.cpu() for name, tensor in judge.state_dict().items()}, beside)
    os.replace(beside, kept)
    return judge.eval()


def _train(judge: Judge, x: Tensor, y: Tensor, seed: int) -> None:
    steps = min(MAX_STEPS, math.ceil(EPOCHS * len(y) / BATCH_SIZE))
    device = judge.head.weight.device
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = cosine(optimizer, steps, warmup_steps=steps // 10)
    batches = iter(TrainBatches(len(y), BATCH_SIZE, BATCH_SIZE, seed=seed))
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(steps):
            indices = torch.from_numpy(next(batches))
            logits = judge(x[indices].float().to(device))[1]
            loss = F.cross_entropy(logits, y[indices].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    judge.scale.fill_((1_000 / see(judge, x).features.var(0).sum().clamp(min=1e-9)).sqrt().item())


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """|m - m'|² + tr(S + S' - 2 (S S')^(1/2)) of the Gaussians with their moments (Dowson & Landau 1982).

    Features (N, D) float64. The trace of (S S')^(1/2) is that of the symmetric (S^(1/2) S' S^(1/2))^(1/2).
    """
    shift = (real.mean(0) - generated.mean(0)).square().sum()
    s, t = real.T.cov(), generated.T.cov()  # (D, D)
    values, vectors = torch.linalg.eigh(s)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ t @ root).clamp(min=0).sqrt().sum()
    return float(shift + s.trace() + t.trace() - 2 * cross)


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Shares of generated samples near real ones, and of real ones near generated ones (Kynkaanniemi et al. 2019).

    Near: within the distance of some sample of the other set to its k-th neighbour there. Sets of one size compare
    best, so the larger one is thinned out evenly.
    """
    size = min(len(real), len(generated))
    real, generated = (s[torch.linspace(0, len(s) - 1, size, dtype=torch.float64).long()] for s in (real, generated))
    if size <= k:
        raise ValueError(f"{size} samples have no {k} neighbours each; take more")

    def share_inside(samples: Tensor, others: Tensor) -> float:
        exact = "donot_use_mm_for_euclid_dist"
        radius = torch.cdist(others, others, compute_mode=exact).kthvalue(k + 1).values  # the first is itself
        return float((torch.cdist(samples, others, compute_mode=exact) <= radius).any(1).double().mean())

    return share_inside(generated, real), share_inside(real, generated)


def coverage(real: Tensor, generated: Tensor) -> float:
    """The share of classes that are seen, from probabilities (N, C): a tenth as often as in real images, or more.

    A sample counts for a class that has more than half of its probability.
    """
    frequency, wanted = ((p > 0.5).double().mean(0) for p in (generated, real))  # (C,)
    return float((frequency >= wanted / 10)[wanted > 0].double().mean())
