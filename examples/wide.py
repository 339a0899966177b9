"""A model in a package of one's own: an `nn.Module` with plain arguments is all it takes."""

from torch import Tensor, nn


class Wide(nn.Module):
    """One hidden layer of `dim` units."""

    def __init__(self, in_dim: int, out_dim: int, dim: int = 512):
        super().__init__()
        self.hidden = nn.Linear(in_dim, dim)
        self.head = nn.Linear(dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).relu())
