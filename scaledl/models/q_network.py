"""The value of each action in a state (Mnih et al. 2015)."""

from typing import Literal

from torch import Tensor, nn

from scaledl.models.mlp import MLP, Activation


class QNetwork(nn.Module):
    """Q (B, num_actions) of observations (B, in_dim), by a perceptron.

    Args:
        dueling: one more output is the state's value, and the others are what an action adds to it, less their mean
            (Wang et al. 2016, eq. 9).
        norm: "layer" keeps values of states that were not seen within bounds, and so learning steady (Gallici et al.
            2024, arXiv:2407.04811).
    """

    block_types = ()

    def __init__(
        self,
        in_dim: int,
        num_actions: int,
        hidden_dims: list[int],
        activation: Activation = "relu",
        dueling: bool = False,
        norm: Literal["none", "layer"] = "none",
    ) -> None:
        super().__init__()
        self.dueling = dueling
        self.net = MLP(in_dim, hidden_dims, num_actions + dueling, activation, norm=norm)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Linear's own U(-1, 1) / sqrt(fan_in): He et al.'s values begin large, and are long in sinking."""
        for layer in self.net.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(self, obs: Tensor) -> Tensor:
        q = self.net(obs.to(self.net.out.weight.dtype))
        if not self.dueling:
            return q
        value, advantage = q[:, :1], q[:, 1:]
        return value + advantage - advantage.mean(1, keepdim=True)
