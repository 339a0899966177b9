"""DLinear: a forecast is a linear map of the past, one of its trend and one of what is left."""

import torch.nn.functional as F
from torch import Tensor, nn


class DLinear(nn.Module):
    """Moving average and remainder, each through one linear map that all columns share (Zeng et al. 2023).

    Weights begin as the mean of the past, as in the authors' code.

    Args:
        kernel_size: of the moving average, odd; the ends are repeated.

    Raises:
        ValueError: kernel_size is even, or x does not have seq_len points.
    """

    block_types = ()

    def __init__(self, seq_len: int, horizon: int, kernel_size: int = 25) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd, so that the average has a middle")
        self.seq_len, self.kernel_size = seq_len, kernel_size
        self.trend, self.remainder = nn.Linear(seq_len, horizon), nn.Linear(seq_len, horizon)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.trend, self.remainder):
            nn.init.constant_(linear.weight, 1 / self.seq_len)

    def forward(self, x: Tensor) -> Tensor:
        """(B, horizon, C) of x (B, seq_len, C)."""
        if x.shape[1] != self.seq_len:
            raise ValueError(f"x has {x.shape[1]} points, but the model was built with seq_len={self.seq_len}")
        x = x.mT  # (B, C, seq_len)
        half = self.kernel_size // 2
        trend = F.avg_pool1d(F.pad(x, (half, half), mode="replicate"), self.kernel_size, stride=1)
        return (self.trend(trend) + self.remainder(x - trend)).mT
