"""The perceptron: one linear map, the origin of all that follows."""

from torch import Tensor, nn

from scaledl.models.mlp import flatten


class Perceptron(nn.Module):
    """A linear score for each class; the highest wins (Rosenblatt 1958, with one unit a class).

    With task.loss=perceptron and SGD it learns by Rosenblatt's rule, with cross_entropy it is logistic regression.
    Takes x (B, ...) and flattens all but the batch axis. Weights start at zero: both objectives are convex, so nothing
    is gained by a random start.

    Raises:
        ValueError: if x does not have in_dim values.
    """

    block_types = ()

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.num_features = in_dim
        self.out = nn.Linear(in_dim, out_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_dim) of x (B, ...) with in_dim values each."""
        return self.out(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """x itself, as (B, in_dim)."""
        return flatten(x, self.num_features)
