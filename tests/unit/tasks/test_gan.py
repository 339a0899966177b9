from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scaledl import build
from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.gan import GAN
from scaledl.tasks.gan import Adversarial

ADAM = partial(torch.optim.Adam, lr=5e-3, betas=(0.0, 0.9))
LOSSES = ["hinge", "non_saturating", "wasserstein"]


def adversarial(samples: int = 16, spectral_norm: bool = True, **settings: Any) -> Any:
    task = Adversarial(ModelBuilder(partial(GAN, 1, 8, 4, [16], [8], 3, spectral_norm=spectral_norm)), ADAM, **settings)
    task.configure_model()
    task.noise = Noise(0, torch.arange(samples))
    return task


def batch_of(samples: int = 16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.rand(samples, 1, 8, 8, generator=generator), "y": torch.arange(samples) % 3}


def two_passes(task: Any, batch: dict[str, Tensor], loss: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The textbook's: each player's own loss, backward through its own weights."""
    x, y, model = batch["x"], batch["y"], task.model
    z, found = task.noise.normal("z", 4), {}

    def score(images: Tensor) -> Tensor:
        return model.discriminate(images, y)

    fake = model.generate(z, y)
    if loss == "hinge":
        d_loss = F.relu(1 - score(x)).mean() + F.relu(1 + score(fake.detach())).mean()
        g_loss = -score(fake).mean()
    elif loss == "wasserstein":
        d_loss, g_loss = score(fake.detach()).mean() - score(x).mean(), -score(fake).mean()
    else:
        ones = torch.ones(len(x))
        d_loss = F.binary_cross_entropy_with_logits(score(x), ones)
        d_loss = d_loss + F.binary_cross_entropy_with_logits(score(fake.detach()), 0 * ones)
        g_loss = F.binary_cross_entropy_with_logits(score(fake), ones)
    for player, own in ((model.discriminator, d_loss), (model.generator, g_loss)):
        names, parameters = zip(*player.named_parameters(), strict=True)
        found |= dict(zip(names, torch.autograd.grad(own, parameters, retain_graph=True), strict=True))
    return d_loss, found


@pytest.mark.parametrize("sure", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradients_of_one_step_are_those_of_two_passes(loss: str, sure: bool) -> None:
    task, batch = adversarial(loss=loss), batch_of()
    task.eval()  # the power iteration rests, so that all passes see the same weights
    if sure:  # a discriminator beyond the hinge for most samples, whose own gradient there is zero
        with torch.no_grad():
            task.model.discriminator.head.bias.fill_(-1.0)
            for parameter in task.model.discriminator.stages.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    expected_loss, expected = two_passes(task, batch, loss)
    metrics = task.objective(batch)
    metrics["loss"].backward()
    torch.testing.assert_close(metrics["loss"], expected_loss)
    found = {n: p.grad for m in (task.model.discriminator, task.model.generator) for n, p in m.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert name == "head.bias" or gradient.abs().sum() > 0  # there real and drawn ones may cancel
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_learns_one_image_for_each_class(loss: str) -> None:
    task = adversarial(32, loss=loss)
    optimizer = task.configure_optimizers()["optimizer"]
    patterns = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(3)).round() * 0.6 + 0.2
    y = torch.arange(32) % 3

    def error() -> float:
        drawn = task.samples(Noise(9, torch.arange(32)), y)
        return (drawn - patterns[y]).abs().mean().item()

    before = error()
    for step in range(250):
        task.noise = Noise(0, torch.arange(32) + 32 * step)
        optimizer.zero_grad()
        task.objective({"x": patterns[y], "y": y})["loss"].backward()
        optimizer.step()
    assert error() < 0.5 * before


def test_alternating_moves_one_player_at_a_time() -> None:
    task = adversarial(update="alternating", discriminator_steps=2)
    optimizer = task.configure_optimizers()["optimizer"]
    moved = []
    for step in range(6):
        finished: list = []
        strategy = SimpleNamespace(finish_gradients=lambda *arguments, finished=finished: finished.append(arguments))
        task._trainer = SimpleNamespace(global_step=step, strategy=strategy)
        players = (task.model.generator, task.model.discriminator)
        before = [[p.clone() for p in player.parameters()] for player in players]
        optimizer.zero_grad()
        task.objective(batch_of())["loss"].backward()
        task.configure_gradient_clipping(optimizer, 1.0)
        optimizer.step()
        assert finished == [(optimizer, 1.0)]
        same = [
            all(torch.equal(a, b) for a, b in zip(was, player.parameters(), strict=True))
            for was, player in zip(before, players, strict=True)
        ]
        moved.append("".join(name for name, stayed in zip("GD", same, strict=True) if not stayed))
    assert moved == ["D", "D", "G", "D", "D", "G"]


def test_penalties_equal_those_of_a_linear_discriminator() -> None:
    weight = torch.randn(64, generator=torch.Generator().manual_seed(0))
    for loss, expected in (("hinge", weight.square().sum() / 2), ("wasserstein", (weight.norm() - 1).square())):
        task = adversarial(loss=loss, gradient_penalty=3.0)
        task.model.discriminate = lambda x, y: x.flatten(1) @ weight
        metrics = task.objective(batch_of())
        torch.testing.assert_close(metrics["gradient_penalty"], expected)
        without = adversarial(loss=loss).objective(batch_of())["loss"]
        torch.testing.assert_close(metrics["loss"], without + 3 * expected)


def test_a_penalty_has_gradients_in_the_discriminator_alone() -> None:
    task = adversarial(loss="wasserstein", gradient_penalty=1.0, spectral_norm=False)
    task.objective(batch_of())["gradient_penalty"].backward()
    assert all(p.grad is None for p in task.model.generator.parameters())
    weights = [p for n, p in task.model.discriminator.named_parameters() if n.endswith("weight")]
    assert all(p.grad.abs().sum() > 0 for p in weights)


def test_what_a_strategy_cannot_do_is_refused_before_the_start() -> None:
    cannot = {"several_optimizers": "it drives one", "second_order_gradients": "it frees weights"}
    strategy = SimpleNamespace(strategy_name="deepspeed_2", cannot=cannot, tensor_parallel_size=1)
    data = SimpleNamespace(accumulation=1)
    build.check_served(adversarial(), strategy, data)
    with pytest.raises(ValueError, match="cannot serve Adversarial, which needs several optimizers: it drives one"):
        build.check_served(adversarial(update="alternating"), strategy, data)
    with pytest.raises(ValueError, match="needs second order gradients: it frees weights; strategy=ddp can"):
        build.check_served(adversarial(gradient_penalty=10.0), strategy, data)
    assert Adversarial.needs == ()


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="discriminator_steps=2 with update=simultaneous"):
        adversarial(discriminator_steps=2)
    with pytest.raises(ValueError, match="gradient_penalty=-1 must be at least 0"):
        adversarial(gradient_penalty=-1)
