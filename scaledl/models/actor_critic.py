"""Actor and critic: which action to take, and how much is to come (Konda & Tsitsiklis 2000)."""

import math

from torch import Tensor, nn

from scaledl.models.mlp import MLP, Activation


class ActorCritic(nn.Module):
    """Logits (B, num_actions) and the state's value (B,) of observations (B, in_dim), by two perceptrons.

    Orthogonal weights; a small last layer lets the policy begin near to chance (Andrychowicz et al. 2021).

    Args:
        hidden_dims: of each of the two.
        critic: false leaves the value at 0, for REINFORCE.
    """

    block_types = ()
    entry_points = ("logits",)

    def __init__(
        self,
        in_dim: int,
        num_actions: int,
        hidden_dims: list[int],
        activation: Activation = "tanh",
        critic: bool = True,
    ) -> None:
        super().__init__()
        self.actor = MLP(in_dim, hidden_dims, num_actions, activation)
        self.critic = MLP(in_dim, hidden_dims, 1, activation) if critic else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for network, last in ((self.actor, 0.01), (self.critic, 1.0)):
            if network is not None:
                for layer in network.hidden:
                    if isinstance(layer, nn.Linear):
                        _orthogonal(layer, math.sqrt(2))
                _orthogonal(network.out, last)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._logits(obs)  # not the entry point, after which FSDP would take the critic's weights away
        if self.critic is None:
            return logits, logits.new_zeros(len(obs))
        return logits, self.critic(obs.to(self.critic.out.weight.dtype)).squeeze(1)

    def logits(self, obs: Tensor) -> Tensor:
        """(B, num_actions), the actor alone: what acting needs."""
        return self._logits(obs)

    def _logits(self, obs: Tensor) -> Tensor:
        return self.actor(obs.to(self.actor.out.weight.dtype))


def _orthogonal(layer: nn.Linear, gain: float) -> None:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
