"""What is explained: one number that a model gives for one sample."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Score = Callable[[Tensor], Tensor]  # inputs (n, ...) -> (n,)
ROWS = 64  # of one call of a score
GRID = 8  # regions along the side of an image


@dataclass(frozen=True)
class Subject:
    """A sample and its score.

    Attributes:
        x: (1, ...) floats: pixels, columns, embeddings of tokens.
        baseline: (1, ...), what stands where something is taken away.
        regions: integers from 0 without gaps that broadcast to x[0]: what is taken away together. Its shape is that of
            a picture of the parts, with 1 where x[0] has channels or embedding dimensions.
        windows: (M, *regions.shape) bool: what occlusion covers, one after the other.
    """

    score: Score
    x: Tensor
    baseline: Tensor
    regions: Tensor
    windows: Tensor


def scores(score: Score, x: Tensor) -> Tensor:
    """The score of many inputs (n, ...), some at a time, without gradients."""
    with torch.no_grad():
        return torch.cat([score(part) for part in x.split(ROWS)])


def of_image(score: Score, x: Tensor) -> Subject:
    """An image x (1, C, H, W), without anything: zeros. Regions are a grid of at most GRID x GRID squares."""
    height, width = x.shape[2:]
    cell = math.ceil(max(height, width) / GRID)
    rows, columns = (torch.arange(side, device=x.device) // cell for side in (height, width))
    regions = rows[:, None] * math.ceil(width / cell) + columns  # (H, W)
    return Subject(score, x, torch.zeros_like(x), regions[None], _squares(height, width, x.device)[:, None])


def of_parts(score: Score, x: Tensor, baseline: Tensor) -> Subject:
    """x (1, F) of columns, or (1, T, D) of embedded tokens: each is a region."""
    regions = torch.arange(x.shape[1], device=x.device).view(-1, *(1 for _ in x.shape[2:]))
    windows = regions == regions.flatten().view(-1, *(1 for _ in regions.shape))
    return Subject(score, x, baseline, regions, windows)


def _squares(height: int, width: int, device: torch.device) -> Tensor:
    """(M, H, W) bool: squares of a quarter of the image's side, at equal distances from edge to edge."""
    size = max(1, min(height, width) // 4)
    starts = [
        torch.linspace(0, side - size, math.ceil((side - size) / max(1, side // 12)) + 1, device=device).round()
        for side in (height, width)
    ]
    inside = [
        (places >= start[:, None]) & (places < start[:, None] + size)
        for start, places in zip(starts, (torch.arange(side, device=device) for side in (height, width)), strict=True)
    ]
    return (inside[0][:, None, :, None] & inside[1][None, :, None, :]).flatten(0, 1)
