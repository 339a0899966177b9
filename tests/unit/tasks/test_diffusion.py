"""Schedules, targets and samplers against closed forms and, where it is installed, diffusers."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.dit import DiT
from scaledl.tasks.diffusion import Diffusion, schedule_of

SCHEDULES = ["linear", "cosine", "flow"]
FEW = {"num_steps": 20, "value_range": [-1.0, 1.0]}


class Gaussian(nn.Module):
    """The best foretelling where data are N(mean, std²), number by number, known in closed form."""

    def __init__(self, target: str, schedule: str, num_steps: int, mean: float = 0.2, std: float = 0.5) -> None:
        super().__init__()
        self.in_shape = (1, 2, 2)
        self.target, self.schedule, self.num_steps, self.mean, self.std = target, schedule, num_steps, mean, std

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        step = (t * self.num_steps).round().long()
        a, s = (of[step].float().view(-1, 1, 1, 1) for of in schedule_of(self.schedule, self.num_steps))
        eps = s * (x - a * self.mean) / (a**2 * self.std**2 + s**2)
        x0 = self.mean + a * self.std**2 * (x - a * self.mean) / (a**2 * self.std**2 + s**2)
        v = eps - x0 if self.schedule == "flow" else a * eps - s * x0
        return {"eps": eps, "x0": x0, "v": v}[self.target]


def task_of(make: Any, **settings: Any) -> Diffusion:
    task = Diffusion(ModelBuilder(make), partial(torch.optim.Adam, lr=1e-3), **{"num_classes": None, **FEW, **settings})
    task.configure_model()
    task.noise = Noise(0, torch.arange(4))
    return task


def exact(target: str, schedule: str, num_steps: int = 20, **settings: Any) -> Diffusion:
    make = partial(Gaussian, target, schedule, num_steps)
    return task_of(make, target=target, schedule=schedule, num_steps=num_steps, **settings)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_goes_from_data_to_noise(schedule: str) -> None:
    a, s = schedule_of(schedule, 200)
    assert (a[0], s[0]) == (1, 0)
    assert a[-1] < 0.02
    assert s[-1] > 0.999
    assert (a.diff() < 0).all()
    assert (s.diff() > 0).all()
    if schedule != "flow":
        torch.testing.assert_close(a**2 + s**2, torch.ones_like(a))


def test_schedules_are_those_of_the_papers() -> None:
    a, _ = schedule_of("linear", 1000)
    assert a[1] ** 2 == pytest.approx(1 - 1e-4)
    assert (a[1000] / a[999]) ** 2 == pytest.approx(1 - 0.02)
    a, _ = schedule_of("cosine", 100)
    f = [math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, 50)]
    assert a[50] ** 2 == pytest.approx(f[1] / f[0])
    a, s = schedule_of("flow", 4)
    assert (a.tolist(), s.tolist()) == ([1, 0.75, 0.5, 0.25, 0], [0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize(
    ("target", "schedule"), [(t, s) for t in ("eps", "x0", "v") for s in SCHEDULES if (t, s) != ("eps", "flow")]
)
def test_data_and_noise_follow_from_every_target(target: str, schedule: str) -> None:
    """The same Gaussian, told in three ways, gives the same two."""
    task, other = exact(target, schedule, clip=False), exact("x0", schedule, clip=False)
    x_t = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    for t in (1, 7, 19):
        x0, eps = task.foretold(x_t, t, None)
        torch.testing.assert_close(
            task.a[t] * x0 + task.s[t] * eps, x_t.double(), atol=2e-3, rtol=1e-3, check_dtype=False
        )
        torch.testing.assert_close(x0, other.foretold(x_t, t, None)[0], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_the_objective_asks_for_the_target(target: str) -> None:
    """One data point: a model that knows it has no loss, one that takes another for it has."""
    batch = {"x": torch.full((4, 1, 2, 2), 0.2)}
    for mean, low, high in ((0.2, 0, 1e-6), (-0.4, 1e-3, torch.inf)):
        make = partial(Gaussian, target, "cosine", 20, mean=mean, std=0.0)
        assert low <= task_of(make, target=target, schedule="cosine").objective(batch)["loss"] < high


def test_values_are_brought_to_the_unit_range_and_back() -> None:
    known = task_of(partial(Gaussian, "x0", "linear", 20, mean=-0.5, std=0.0), target="x0", value_range=[0.0, 8.0])
    assert known.objective({"x": torch.full((4, 1, 2, 2), 2.0)})["loss"].item() < 1e-9
    torch.testing.assert_close(known.samples(Noise(0, torch.arange(3)), torch.zeros(3)), torch.full((3, 1, 2, 2), 2.0))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_posterior_is_that_of_bayes(schedule: str) -> None:
    """q(x_s | x_t, x0) ∝ q(x_t | x_s) q(x_s | x0): precisions add, means weigh by them."""
    task = exact("x0", schedule)
    x_t, x0 = torch.tensor([0.3], dtype=torch.float64), torch.tensor([-0.7], dtype=torch.float64)
    for t, earlier in ((20, 19), (13, 12), (15, 4)):
        (a_t, s_t), (a, s) = ((task.a[k].item(), task.s[k].item()) for k in (t, earlier))
        step = a_t / a
        added = s_t**2 - step**2 * s**2
        precision = step**2 / added + 1 / s**2
        mean, std = task.posterior(x_t, x0, t, earlier)
        assert std == pytest.approx(precision**-0.5, rel=1e-9)
        assert mean.item() == pytest.approx((step * x_t.item() / added + a * x0.item() / s**2) / precision, rel=1e-9)
    mean, std = task.posterior(x_t, x0, 1, 0)
    assert std == 0
    assert mean == pytest.approx(x0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_samples_have_the_distribution_of_the_data(schedule: str, sampler: str) -> None:
    task = exact("v", schedule, num_steps=200, sampler=sampler, clip=False)
    x = task.samples(Noise(0, torch.arange(2_000)), torch.zeros(2_000, dtype=torch.int64))
    assert x.mean() == pytest.approx(0.2, abs=0.03)
    assert x.std() == pytest.approx(0.5, abs=0.03)


def test_a_ddim_step_on_straight_lines_is_eulers_and_needs_one_step_for_one_point() -> None:
    task = exact("v", "flow", clip=False, sampler="ddim", sampling_steps=1)
    noise = Noise(0, torch.arange(3))
    x = noise.normal("x_T", 1, 2, 2)
    expected = x - task.model(x, torch.ones(3))
    torch.testing.assert_close(task.samples(noise, torch.zeros(3)), expected)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_steps_are_those_of_diffusers(schedule: str, sampler: str, target: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers, an optional reference, is not installed")
    kind = diffusers.DDPMScheduler if sampler == "ddpm" else diffusers.DDIMScheduler
    words = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
    settings = {"beta_start": 1e-3, "beta_end": 0.2} if schedule == "linear" else {}
    theirs = kind(
        num_train_timesteps=100,
        beta_schedule="linear" if schedule == "linear" else "squaredcos_cap_v2",
        prediction_type=words[target],
        clip_sample=True,
        **settings,
    )
    theirs.set_timesteps(100)
    task = exact(target, schedule, num_steps=100, sampler=sampler)
    x_t = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    for t in (100, 99, 50, 2, 1):
        output = task.model(x_t, torch.full((4,), t / 100))
        x0, eps = task.foretold(x_t, t, None)
        if sampler == "ddim":
            ours = task.a[t - 1].item() * x0 + task.s[t - 1].item() * eps
            expected = theirs.step(output, t - 1, x_t).prev_sample
        else:
            mean, std = task.posterior(x_t, x0, t, t - 1)
            ours = mean + std * torch.randn(x_t.shape, generator=torch.Generator().manual_seed(5))
            expected = theirs.step(output, t - 1, x_t, generator=torch.Generator().manual_seed(5)).prev_sample
        torch.testing.assert_close(ours, expected, atol=2e-4, rtol=2e-4)


class Labelled(nn.Module):
    """Foretells, for x0, the label."""

    in_shape = (1, 2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.read: Tensor | None = None

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.read = y
        return (y / 10.0).view(-1, 1, 1, 1).expand_as(x)


def test_guidance_goes_beyond_the_conditional() -> None:
    task = task_of(Labelled, num_classes=10, target="x0", guidance=2.0, clip=False)
    x0, _ = task.foretold(torch.zeros(2, 1, 2, 2), 5, torch.tensor([3, 7]))
    torch.testing.assert_close(x0[:, 0, 0, 0], torch.tensor([3 * 0.3 - 2 * 1.0, 3 * 0.7 - 2 * 1.0]))


def test_labels_are_hidden_in_training_only() -> None:
    task = task_of(Labelled, num_classes=10, label_dropout=0.3)
    task.noise = Noise(0, torch.arange(2_000))
    batch = {"x": torch.zeros(2_000, 1, 2, 2), "y": torch.arange(2_000) % 10}
    task.model.train()
    task.objective(batch)
    hidden = task.model.read == 10
    assert hidden.float().mean() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(task.model.read[~hidden], batch["y"][~hidden])
    task.model.eval()
    task.objective(batch)
    assert torch.equal(task.model.read, batch["y"])


def test_it_overfits_one_batch_and_draws_it() -> None:
    make = partial(DiT, 1, 4, 2, dim=32, depth=1, num_heads=2)
    task = task_of(make, num_classes=2, target="x0", schedule="cosine", label_dropout=0.0, sampler="ddim")
    images = torch.tensor([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, -1.0]])[:, None, :, None].expand(2, 1, 4, 4)
    batch = {"x": images.repeat(16, 1, 1, 1), "y": torch.arange(2).repeat(16)}
    optimizer = torch.optim.Adam(task.model.parameters(), lr=3e-3)
    for step in range(150):
        task.noise = Noise(0, torch.arange(32) + 32 * step)
        loss = task.objective(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    drawn = task.samples(Noise(1, torch.arange(4)), torch.tensor([0, 1, 0, 1]))
    assert (drawn - batch["x"][:4]).abs().mean() < 0.1


def test_it_runs_without_memory() -> None:
    task = Diffusion(
        ModelBuilder(partial(DiT, 1, 8, 10, dim=32, depth=1, num_heads=2)), torch.optim.SGD, 10, [0.0, 1.0]
    )
    task.model = task.model_builder.on_meta()
    task.noise = Noise(0, torch.zeros(1, dtype=torch.int64, device="meta"))
    batch = {"x": torch.zeros(1, 1, 8, 8, device="meta"), "y": torch.zeros(1, dtype=torch.int64, device="meta")}
    assert task.objective(batch)["loss"].shape == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling_steps": 21}, "sampling_steps=21 must lie between 1 and num_steps=20"),
        ({"label_dropout": 1.0}, r"label_dropout=1.0 must lie in \[0, 1\)"),
        ({"guidance": 1.0}, "guidance=1.0 needs a model of num_classes"),
        ({"guidance": 1.0, "num_classes": 3, "label_dropout": 0.0}, "learned without a label"),
        ({"schedule": "flow"}, "target=eps says nothing of the data"),
        ({"value_range": [1.0, 0.0]}, "give the lowest and the highest"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_of(Labelled, **settings)
