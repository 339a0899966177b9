"""The evidence lower bound: how well images are drawn again, less how much of the prior their codes use up."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.autoencoding import Likelihood, log_likelihood, mean_of
from scaledl.tasks.base import Task, check_range


class ELBO(Task):
    """-ELBO = -E log p(x | z) + KL(q(z | x) || N(0, 1)) of images `x` (B, C, H, W) (Kingma & Welling 2014).

    Metrics, in nats a sample: `neg_elbo`, an upper bound of -log p(x), its parts `reconstruction` and `kl`, and `loss`,
    in which the second counts `beta` times (Higgins et al. 2017: above 1, codes fall apart into independent factors).

    Args:
        likelihood: "bernoulli" takes pixels in [0, 1] as probabilities, "gaussian" (of std 1) any.

    Raises:
        ValueError: beta is negative, or at the start of the training, the pixels are out of range.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        likelihood: Likelihood = "bernoulli",
        beta: float = 1.0,
    ):
        super().__init__(model, optimizer, scheduler)
        if beta < 0:
            raise ValueError(f"beta={beta} must be at least 0; 1 is the evidence lower bound")
        self.likelihood, self.beta = likelihood, beta

    def on_fit_start(self) -> None:
        if self.likelihood == "bernoulli":
            check_range(self, (0, 1), "task.likelihood=bernoulli takes", "task.likelihood=gaussian")

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = batch["x"]
        out, mu, logvar = self.model(x, self.noise.normal("eps", self.model.latent_dim))
        reconstruction = -log_likelihood(x, out.float(), self.likelihood).mean()
        kl = kl_from_normal(mu.float(), logvar.float()).mean()
        loss = reconstruction + self.beta * kl
        return {"loss": loss, "neg_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    def samples(self, noise: Noise, labels: Tensor) -> Tensor:
        """Means of p(x | z) for codes from the prior; labels are not followed."""
        return self.decoded(noise.normal("z", self.model.latent_dim))

    # What callbacks/reconstructions.py and latent_space.py ask of a task.

    def reconstruct(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Images x, and what is drawn from the means of their codes."""
        return x, self.decoded(self.codes(x))

    def codes(self, x: Tensor) -> Tensor:
        """Means (B, latent_dim)."""
        return self.model.encode(x)[0].float()  # type: ignore[operator]

    def decoded(self, z: Tensor) -> Tensor:
        return mean_of(self.model.decode(z).float(), self.likelihood)  # type: ignore[operator]


def kl_from_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) of each sample (B,), summed over its dimensions, in nats."""
    return (mu.square() + logvar.exp() - 1 - logvar).sum(1) / 2
