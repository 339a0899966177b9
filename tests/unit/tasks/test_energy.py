"""Langevin dynamics and contrastive divergence against what they should converge to; chains that go on."""

from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.cnn import CNN
from scaledl.models.mlp import MLP
from scaledl.models.rbm import RBM
from scaledl.tasks.energy import Energy
from scaledl.tasks.rbm import ContrastiveDivergence

NET = partial(CNN, 1, 4, [[8, 3, 1, 2]], [16], 1, "silu", "average")


class Bowl(nn.Module):
    """E(x) = scale · |x - 0.3|² / 2, of a Gaussian around 0.3."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, 20.0)

    def forward(self, x: Tensor) -> Tensor:
        return (self.scale * (x - 0.3).square().flatten(1).sum(1) / 2).unsqueeze(1)


def task_of(make: Any = NET, batch: int = 8, **settings: Any) -> Energy:
    task = Energy(ModelBuilder(make), partial(torch.optim.Adam, lr=1e-3), **{"value_range": [0.0, 1.0], **settings})
    task.configure_model()
    task.noise = Noise(0, torch.arange(batch))
    return task


def test_langevin_dynamics_find_the_distribution() -> None:
    """With noise sqrt(2 · step), they sample from exp(-E): N(0.3, 1 / 20)."""
    step = 0.01
    task = task_of(Bowl, step_size=step, langevin_noise=(2 * step) ** 0.5, max_gradient=100.0)
    x = task.langevin(torch.zeros(400, 1, 4, 4), Noise(0, torch.arange(400)), 80)
    assert x.mean() == pytest.approx(0.3, abs=0.02)
    assert x.std() == pytest.approx(20**-0.5, rel=0.1)
    assert not x.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_parameters_get_no_gradient_on_the_way_and_evaluations_can_walk(mode) -> None:
    task = task_of()
    start = torch.zeros(8, 1, 4, 4)
    expected = task.langevin(start, task.noise, 3)
    assert all(parameter.grad is None for parameter in task.model.parameters())
    with mode():
        torch.testing.assert_close(task.langevin(start.clone(), task.noise, 3), expected)
    assert not torch.equal(expected, start)
    assert expected.abs().max() <= 1


def test_a_walker_is_held_within_the_range_and_its_steps_within_their_bound() -> None:
    task = task_of(Bowl, step_size=1.0, langevin_noise=0.0, max_gradient=0.1)
    x = task.langevin(torch.full((2, 1, 4, 4), -0.9), Noise(0, torch.arange(2)), 2)
    torch.testing.assert_close(x, torch.full_like(x, -0.7))
    far = task_of(Bowl, step_size=9.0, langevin_noise=0.0, max_gradient=1.0)
    assert far.langevin(x, Noise(0, torch.arange(2)), 1).max() == 1


def test_the_objective_is_the_difference_of_energies() -> None:
    task = task_of(Bowl, num_steps=200, langevin_noise=0.0, step_size=0.02, max_gradient=9.0, energy_penalty=0.5)
    task.eval()
    found = task.objective({"x": torch.full((8, 1, 4, 4), 0.9)})  # 0.8 in [-1, 1]; samples end at the bottom
    of_data = 20 * 16 * 0.5**2 / 2
    assert found["gap"].item() == pytest.approx(of_data, rel=1e-4)
    assert found["energy"].item() == pytest.approx(of_data, rel=1e-4)
    assert found["loss"].item() == pytest.approx(of_data + 0.5 * of_data**2, rel=1e-4)
    torch.testing.assert_close(task.energy(torch.full((1, 1, 4, 4), 0.65)), torch.zeros(1))  # 0.3 in [-1, 1]


def test_every_parameter_gets_a_gradient_and_data_become_likely() -> None:
    task = task_of(num_steps=10)
    batch = {"x": torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(8, 1, 2, 2).view(8, 1, 4, 4)}
    optimizer = torch.optim.Adam(task.model.parameters(), lr=3e-3)
    for step in range(80):
        task.noise = Noise(0, torch.arange(8) + 8 * step)
        optimizer.zero_grad()
        task.objective(batch)["loss"].backward()
        if not step:
            for name, parameter in task.model.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.abs().max() > 0, name
        optimizer.step()
    with torch.no_grad():
        assert (task.energy(batch["x"]).max() < task.energy(torch.rand(64, 1, 4, 4))).all()


class Digitless:
    """A training set of one kind of image."""

    def __len__(self) -> int:
        return 8

    def __getitems__(self, indices: Any) -> dict[str, Tensor]:
        return {"x": torch.zeros(len(indices), 1, 4, 4)}


def on_ranks(rank: int, world_size: int, micro_batch_size: int = 2) -> Energy:
    """As Lightning would begin to train it, with a global batch of 8."""
    task = task_of(num_steps=2, step_size=1.0, buffer_depth=3, fresh=0.25)
    data = SimpleNamespace(
        rank=rank,
        micro_batch_size=micro_batch_size,
        accumulation=8 // world_size // micro_batch_size,
        split=lambda name: Digitless(),
    )
    task._trainer = SimpleNamespace(datamodule=data, global_step=0, accumulate_grad_batches=data.accumulation)
    task.on_fit_start()
    return task


def train(task: Energy, steps: int) -> None:
    data = task.trainer.datamodule
    for step in range(steps):
        task.trainer.global_step = step
        for number in range(data.accumulation):
            first = (data.rank * data.accumulation + number) * data.micro_batch_size
            task.noise = Noise(0, 8 * step + first + torch.arange(data.micro_batch_size))
            task._micro_batch = number
            task.objective({"x": torch.zeros(data.micro_batch_size, 1, 4, 4)})


def chains_of(*tasks: Energy) -> Tensor:
    held = [piece for task in tasks for piece in task.carried()["chains"]]
    return torch.cat([chains for _, chains in sorted(held, key=lambda piece: piece[0])], dim=1)


def test_chains_do_not_depend_on_ranks_or_micro_batches() -> None:
    one, two = on_ranks(0, 1, 8), [on_ranks(rank, 2) for rank in range(2)]
    assert chains_of(one).shape == (3, 8, 16)
    torch.testing.assert_close(chains_of(one), chains_of(*two))
    for task in (one, *two):
        train(task, 5)
    torch.testing.assert_close(chains_of(one), chains_of(*two))


def test_a_chain_goes_on_at_its_turn_and_others_wait() -> None:
    task = on_ranks(0, 1, 8)
    before = chains_of(task).clone()
    train(task, 1)
    after = chains_of(task)
    assert torch.equal(after[1:], before[1:])
    moved = (after[0] - before[0]).abs().mean(1)
    anew = task.noise.bernoulli("anew", 0.25)
    assert 0 < anew.sum() < 8
    assert moved[~anew].max() < 0.3 * moved[anew].min()


def test_no_buffer_carries_nothing() -> None:
    task = task_of(buffer_depth=0)
    task._trainer = on_ranks(0, 1)._trainer
    task.on_fit_start()
    assert task.carried() == {}
    assert task.samples(Noise(0, torch.arange(3)), torch.zeros(3)).shape == (3, 1, 4, 4)


def rbm_task(in_dim: int = 4, hidden_dim: int = 3, batch: int = 8, **settings: Any) -> ContrastiveDivergence:
    make = partial(RBM, in_dim, hidden_dim, init_std=0.5)
    task = ContrastiveDivergence(ModelBuilder(make), partial(torch.optim.SGD, lr=0.1), **settings)
    task.configure_model()
    task.noise = Noise(0, torch.arange(batch))
    return task


def test_the_gradient_is_the_rule_of_contrastive_divergence() -> None:
    """<v h> of data minus <v h> of samples, with the hidden units' probabilities (Hinton 2002)."""
    task = rbm_task()
    v = torch.rand(8, 2, 2, generator=torch.Generator().manual_seed(0))
    task.objective({"x": v})["loss"].backward()
    model, v = task.model, v.flatten(1)
    with torch.no_grad():
        away, _ = task.gibbs(v, task.noise, 1)
        h, h_away = model.forward_features(v), model.forward_features(away)
    torch.testing.assert_close(model.weight.grad, (h_away.T @ away - h.T @ v) / 8)
    torch.testing.assert_close(model.visible_bias.grad, (away - v).mean(0))
    torch.testing.assert_close(model.hidden_bias.grad, (h_away - h).mean(0))


@torch.no_grad()
def test_gibbs_sampling_finds_the_distribution() -> None:
    task = rbm_task(batch=4_000)
    v, _ = task.gibbs(torch.zeros(4_000, 4), task.noise, 20)
    states = torch.tensor(list(product((0.0, 1.0), repeat=4)))
    expected = (-task.energy(states)).softmax(0)
    found = torch.bincount((v @ torch.tensor([8.0, 4, 2, 1])).long(), minlength=16) / 4_000
    assert (found - expected).abs().max() < 4 * 0.5 / 4_000**0.5


def test_it_learns_one_batch_and_draws_it() -> None:
    task = rbm_task(in_dim=16, hidden_dim=16, batch=32)
    v = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(16, 8).view(32, 1, 4, 4)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.2)
    for step in range(200):
        task.noise = Noise(0, torch.arange(32) + 32 * step)
        metrics = task.objective({"x": v})
        optimizer.zero_grad()
        metrics["loss"].backward()
        optimizer.step()
    assert metrics["reconstruction"] < 0.01
    drawn = task.samples(Noise(1, torch.arange(16)), torch.zeros(16))
    assert drawn.shape == (16, 1, 4, 4)
    distance = (drawn[:, None] - v[None, :2]).abs().mean((2, 3, 4)).amin(1)
    assert distance.median() < 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(task_of, value_range=[1.0, 1.0]), "give the lowest and the highest"),
        (partial(task_of, num_steps=0), "num_steps=0 and sampling_steps=256 must be at least 1"),
        (partial(task_of, fresh=1.5), "fresh=1.5 a share"),
        (partial(rbm_task, num_steps=0), "num_steps=0 and sampling_steps=200 must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_energy_is_one_number() -> None:
    task = task_of(partial(MLP, 16, [], 3))
    with pytest.raises(ValueError, match=r"gives \(3,\) outputs a sample, but an energy is one: set model.out_dim=1"):
        task.objective({"x": torch.zeros(8, 1, 4, 4)})
