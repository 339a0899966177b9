"""A network with a small head behind it that a self-supervised loss reads, and that is left behind afterwards."""

from typing import Literal

from torch import Tensor, nn

from scaledl.layers.features import features
from scaledl.models.mlp import MLP, NORMS


class Projected(nn.Module):
    """z = W₂ relu(W₁ h) of the features h of any backbone (Chen et al. 2020, SimCLR, section 2.1), and, with
    predictor_dim, an MLP q(z) of the same width behind it (Grill et al. 2020, BYOL, section 3.1).

    W₁ is the backbone's own last layer, so that no parameter is idle.

    Args:
        backbone: a model with `forward_features`, whose out_dim is hidden_dim.
        hidden_dim: between W₁ and W₂.
        out_dim: of z.
        predictor_dim: hidden width of the predictor; null: there is none.
        norm: between W₁ and relu, and in the predictor: "layer", over one sample, or "sync_batch", over the samples of
            all ranks, without which BYOL's views all become one.
    """

    def __init__(
        self,
        backbone: nn.Module,
        hidden_dim: int,
        out_dim: int,
        predictor_dim: int | None = None,
        norm: Literal["none", "layer", "sync_batch"] = "layer",
    ) -> None:
        super().__init__()
        self.block_types = getattr(backbone, "block_types", ())
        self.num_features: int = backbone.num_features  # type: ignore[assignment]
        self.backbone = backbone
        self.norm = nn.Identity() if norm == "none" else NORMS[norm](hidden_dim)
        self.activation = nn.ReLU()
        self.projection = nn.Linear(hidden_dim, out_dim)
        self.predictor = MLP(out_dim, [predictor_dim], out_dim, norm=norm) if predictor_dim else None

    def forward(self, x: Tensor, predict: bool = False) -> Tensor:
        """z (B, out_dim) of x (B, ...), or, if `predict`, q(z)."""
        z = self.projection(self.activation(self.norm(self.backbone(x))))  # (B, out_dim)
        if not predict:
            return z
        if self.predictor is None:
            raise ValueError("model.predictor_dim is null: a predictor is needed here, give it a hidden width")
        return self.predictor(z)

    def forward_features(self, x: Tensor) -> Tensor:
        """The backbone's features (B, num_features)."""
        return features(self.backbone, x)
