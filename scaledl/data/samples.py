"""Labelled samples that fit into memory."""

import numpy as np
import torch
from torch import Tensor


class Samples:
    """Labelled samples in memory: `x` (N, ...) and `y` (N,) int64."""

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {"x": self.x[indices], "y": self.y[indices]}
