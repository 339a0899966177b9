"""What a denoiser is told besides the noisy sample."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.position import sinusoidal

LONGEST = 1000  # positions that times in [0, 1] are spread over, as the wavelengths of `sinusoidal` expect


class TimeAndClass(nn.Module):
    """The time by an MLP of its sinusoids (Ho et al. 2020), plus a learned vector of the class (Ho & Salimans 2022).

    Args:
        dim: of the condition.
        num_classes: one more vector stands for "no class"; null: without classes.
    """

    def __init__(self, dim: int, num_classes: int | None) -> None:
        super().__init__()
        self.dim, self.num_classes = dim, num_classes
        self.up, self.down = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, dim)

    def forward(self, t: Tensor, y: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(B, dim) of times t (B,) in [0, 1] and classes y (B,) in [0, num_classes]; the last is "no class".

        Raises:
            ValueError: if there are classes and no y, or the other way round.
        """
        if (y is None) != (self.classes is None):
            raise ValueError(
                f"a model with num_classes={self.num_classes} " + ("needs y" if y is None else "reads no y") + ": give "
                "the task the model's num_classes"
            )
        condition = self.down(F.silu(self.up(sinusoidal(t.float() * LONGEST, self.dim).to(dtype))))
        return condition if self.classes is None else condition + self.classes(y)
