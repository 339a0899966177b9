"""What acts: its shapes, how it begins, and that nothing is without a gradient."""

import pytest
import torch

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.actor_critic import ActorCritic
from scaledl.models.q_network import QNetwork


def test_a_policy_begins_near_to_chance_with_orthogonal_weights() -> None:
    model = ModelBuilder(lambda: ActorCritic(4, 3, [32, 32]))()
    obs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    logits, value = model(obs)
    assert (logits.shape, value.shape) == ((64, 3), (64,))
    torch.testing.assert_close(logits, model.logits(obs))
    assert (logits.softmax(1) - 1 / 3).abs().max() < 0.02
    assert value.std() > 0.05
    hidden = model.actor.hidden[2].weight
    torch.testing.assert_close(hidden @ hidden.T, 2 * torch.eye(32), atol=1e-4, rtol=0)
    (logits.square().sum() + value.sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_without_a_critic_there_are_no_weights_of_one_and_the_value_is_zero() -> None:
    model = ActorCritic(4, 3, [8], critic=False)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"actor"}
    assert model(torch.randn(5, 4))[1].tolist() == [0.0] * 5


def test_dueling_adds_to_the_state_s_value_what_an_action_is_better_than_the_mean() -> None:
    model = QNetwork(4, 3, [8], dueling=True)
    obs = torch.randn(5, 4)
    q = model(obs)
    torch.testing.assert_close(q.mean(1), model.net(obs)[:, 0])
    torch.testing.assert_close(q.diff(dim=1), model.net(obs)[:, 1:].diff(dim=1))
    assert QNetwork(4, 3, [8])(obs).shape == (5, 3)


@pytest.mark.parametrize("model", [ActorCritic(4, 3, [8]), QNetwork(4, 3, [8])], ids=["actor_critic", "q_network"])
def test_observations_take_the_precision_of_the_weights(model: torch.nn.Module) -> None:
    out = model.bfloat16()(torch.randn(2, 4))
    assert (out[0] if isinstance(out, tuple) else out).dtype == torch.bfloat16
