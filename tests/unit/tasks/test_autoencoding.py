from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from scaledl.data.digits import Digits
from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.autoencoder import Autoencoder
from scaledl.models.vae import VAE
from scaledl.tasks.autoencoding import Autoencoding, log_likelihood
from scaledl.tasks.base import Task
from scaledl.tasks.vae import ELBO, kl_from_normal

ADAM = partial(torch.optim.Adam, lr=1e-2)


def ready(task: Task, samples: int) -> Any:
    task.configure_model()
    task.noise = Noise(0, torch.arange(samples))
    return task


def learn(task: Any, batch: dict[str, Tensor], steps: int) -> dict[str, Tensor]:
    optimizer = task.configure_optimizers()["optimizer"]
    for _ in range(steps):
        metrics = task.objective(batch)
        optimizer.zero_grad()
        metrics["loss"].backward()
        optimizer.step()
    return metrics


def digits(count: int) -> dict[str, Tensor]:
    train = Digits(8, 8).split("train")
    return {"x": train.x[:count], "y": train.y[:count]}


def test_a_linear_autoencoder_finds_the_principal_components() -> None:
    scales = torch.tensor([3.0, 2.5, 2.0] + 13 * [0.3])
    x = 1 + torch.randn(200, 16, generator=torch.Generator().manual_seed(0)) * scales
    basis = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:3]  # (3, 16)
    projected = (x - x.mean(0)) @ basis.T @ basis + x.mean(0)
    best = (projected - x).square().mean()
    task = ready(Autoencoding(ModelBuilder(partial(Autoencoder, 1, 4, 3, [], [])), ADAM, likelihood="gaussian"), len(x))
    batch = {"x": x.view(-1, 1, 4, 4)}
    optimizer = torch.optim.LBFGS(task.model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task.objective(batch)["loss"]
        loss.backward()
        return loss

    optimizer.step(closure)
    assert task.objective(batch)["mse"].item() == pytest.approx(best.item(), rel=1e-3)
    decoder = task.model.decoder.head.out.weight  # (16, 3)
    found = torch.linalg.qr(decoder.detach()).Q
    cosines = torch.linalg.svdvals(basis @ found)  # of the angles between the two spaces
    assert cosines.min() > 0.99


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_likelihood_is_that_of_torch_distributions(likelihood: str) -> None:
    x, out = torch.rand(4, 1, 3, 3).round(), torch.randn(4, 1, 3, 3)
    of = Bernoulli(logits=out) if likelihood == "bernoulli" else Normal(out, 1.0)
    torch.testing.assert_close(log_likelihood(x, out, likelihood), of.log_prob(x).flatten(1).sum(1))


def test_the_divergence_is_that_of_torch_distributions() -> None:
    mu, logvar = torch.randn(5, 7), torch.randn(5, 7)
    expected = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_from_normal(mu, logvar), expected)


def test_the_bound_lies_below_the_likelihood_of_a_linear_gaussian_model() -> None:
    """With p(x | z) = N(Wz + b, 1), x is N(b, WW' + 1); the bound is tight for the right posterior."""
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)) * 2
    task = ready(ELBO(ModelBuilder(partial(VAE, 1, 2, 2, [], [])), ADAM, likelihood="gaussian"), len(x))
    batch = {"x": x.view(-1, 1, 2, 2)}
    learn(task, batch, 600)
    out = task.model.decoder.head.out
    marginal = torch.distributions.MultivariateNormal(out.bias, out.weight @ out.weight.T + torch.eye(4))
    exact = -marginal.log_prob(x).mean()
    bounds = []
    for seed in range(40):  # the mean over eps
        task.noise = Noise(seed, torch.arange(len(x)))
        bounds.append(task.objective(batch)["neg_elbo"].detach())
    bound = torch.stack(bounds).mean()
    assert exact - 0.02 < bound < exact + 0.1


def test_beta_weighs_the_divergence_in_the_loss_only() -> None:
    metrics = []
    for beta in (1.0, 4.0):
        task = ready(ELBO(ModelBuilder(partial(VAE, 1, 8, 4, [], [16])), ADAM, beta=beta), 8)
        metrics.append(task.objective(digits(8)))
    one, four = metrics
    torch.testing.assert_close(one["loss"], one["neg_elbo"])
    torch.testing.assert_close(four["neg_elbo"], one["neg_elbo"])
    torch.testing.assert_close(four["loss"], four["reconstruction"] + 4 * four["kl"])


def test_each_overfits_one_batch() -> None:
    batch = digits(16)
    plain = ready(Autoencoding(ModelBuilder(partial(Autoencoder, 1, 8, 16, [16], [64])), ADAM), 16)
    assert learn(plain, batch, 300)["mse"] < 0.004
    vae = ready(ELBO(ModelBuilder(partial(VAE, 1, 8, 8, [], [64])), ADAM), 16)
    first = vae.objective(batch)["neg_elbo"].item()
    assert learn(vae, batch, 300)["neg_elbo"] < 0.65 * first


def test_the_input_is_spoilt_and_the_target_is_not() -> None:
    x = torch.ones(64, 2, 8, 8)
    build = ModelBuilder(partial(Autoencoder, 2, 8, 2, [], []))
    task = ready(Autoencoding(build, ADAM, noise_std=0.1, mask_ratio=0.25), 64)
    shown = task.spoilt(x, task.noise)
    hidden = shown == 0
    assert float(hidden.float().mean()) == pytest.approx(0.25, abs=0.02)
    assert torch.equal(hidden[:, 0], hidden[:, 1])  # a pixel, in all of its channels
    assert float(shown[~hidden].std()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(shown, task.spoilt(x, task.noise))
    expected = -log_likelihood(x, task.model(shown), "bernoulli").mean()
    torch.testing.assert_close(task.objective({"x": x})["loss"], expected)


def test_samples_depend_on_the_number_of_the_sample_alone() -> None:
    task = ready(ELBO(ModelBuilder(partial(VAE, 1, 8, 4, [8], [])), ADAM), 1)
    all_at_once = task.samples(Noise(1, torch.arange(10)), torch.zeros(10, dtype=torch.int64))
    assert all_at_once.shape == (10, 1, 8, 8)
    some = task.samples(Noise(1, torch.arange(4, 10)), torch.ones(6, dtype=torch.int64))
    torch.testing.assert_close(all_at_once[4:], some)
    assert not torch.equal(all_at_once[0], all_at_once[1])


def test_pixels_that_are_no_probabilities_are_refused() -> None:
    pixels = torch.tensor([-0.5, 2.0]).view(2, 1, 1, 1)

    class Two:
        def __len__(self) -> int:
            return 2

        def __getitems__(self, indices: Any) -> dict[str, Tensor]:
            return {"x": pixels}

    split = Two()
    build = ModelBuilder(partial(Autoencoder, 1, 1, 2, [], []))
    for task in (Autoencoding(build, ADAM), Autoencoding(build, ADAM, likelihood="gaussian")):
        task._trainer = SimpleNamespace(datamodule=SimpleNamespace(split=lambda name: split))  # type: ignore[assignment]
        if task.likelihood == "gaussian":
            task.on_fit_start()
            continue
        with pytest.raises(ValueError, match=r"values lie in \[-0.50, 2.00\].*task.likelihood=gaussian"):
            task.on_fit_start()


def test_settings_out_of_range_are_refused() -> None:
    build = ModelBuilder(partial(Autoencoder, 1, 8, 2, [], []))
    with pytest.raises(ValueError, match=r"noise_std=-1 must be at least 0"):
        Autoencoding(build, ADAM, noise_std=-1)
    with pytest.raises(ValueError, match=r"mask_ratio=1.0 lie in \[0, 1\)"):
        Autoencoding(build, ADAM, mask_ratio=1.0)
    with pytest.raises(ValueError, match=r"beta=-1 must be at least 0"):
        ELBO(build, ADAM, beta=-1)
