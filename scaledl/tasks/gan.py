"""Two players in one step: the discriminator's loss and the generator's, each with gradients for its own weights only.

Textbooks give each player an optimiser and a backward pass of its own. DDP, FSDP and ZeRO then meet parameters without
gradients, or a second optimiser that they cannot drive. So the discriminator reads each drawn image twice in one
batch, once cut off from the generator (the twin). The loss

    D(real, twin) + G(drawn) - G(twin)

has the value of D's loss; drawn and twin have equal scores, so in D's weights the last two terms cancel, and in the
generator's only G(drawn) has a gradient. Scaling the gradient on its way from D's loss into the generator instead
would spare the twin, but not serve the hinge loss, whose gradient is zero where the discriminator is sure.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.base import Task

LossName = Literal["non_saturating", "hinge", "wasserstein"]


class Adversarial(Task):
    """Generator against discriminator (Goodfellow et al. 2014) on images `x` (B, C, H, W), if conditional with classes
    `y` (B,).

    Spectral norms move on with each micro-batch, so with gradient accumulation they depend on how many there are.

    Metrics: `loss`, the discriminator's; `generator_loss`; `real_score` and `drawn_score`, the means of what the
    discriminator says. None of them tells how good samples are: watch `val/frechet` (callbacks/sample_grid.py).

    Args:
        loss: "non_saturating", "hinge" (Lim & Ye 2017) or "wasserstein" (Arjovsky et al. 2017), which needs a
            discriminator of bounded slope: `model.spectral_norm` or a gradient penalty.
        update: "simultaneous" moves both players in each step, on any strategy; "alternating" moves one of them.
        discriminator_steps: when alternating, the steps of the discriminator before each one of the generator.
        gradient_penalty: its weight; with wasserstein on slopes other than 1 between real and drawn images (Gulrajani
            et al. 2017), else on any slope at real ones (R1, Mescheder et al. 2018).

    Raises:
        ValueError: settings contradict each other.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        loss: LossName = "hinge",
        update: Literal["simultaneous", "alternating"] = "simultaneous",
        discriminator_steps: int = 1,
        gradient_penalty: float = 0.0,
    ):
        super().__init__(model, optimizer, scheduler)
        if discriminator_steps < 1 or (discriminator_steps > 1 and update == "simultaneous"):
            raise ValueError(
                f"discriminator_steps={discriminator_steps} with update={update}: a simultaneous step moves both once; "
                "set it to 1, or take update=alternating and 1 or more"
            )
        if gradient_penalty < 0:
            raise ValueError(f"gradient_penalty={gradient_penalty} must be at least 0, which leaves it out")
        self.loss, self.update, self.discriminator_steps = loss, update, discriminator_steps
        self.gradient_penalty = gradient_penalty
        if update == "alternating":
            self.needs += ("several_optimizers",)
        if gradient_penalty:
            self.needs += ("second_order_gradients",)

    @property
    def conditional(self) -> bool:
        return self.model.num_classes > 0  # type: ignore[operator]

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = batch["x"]
        y = batch["y"] if self.conditional else torch.zeros(len(x), dtype=torch.int64, device=x.device)
        drawn, *scores = self.model(x, self.noise.normal("z", self.model.latent_dim), y)
        of_real, of_twin, of_drawn = (score.float() for score in scores)
        loss, generator_loss = discriminator_loss(of_real, of_twin, self.loss), minus(of_drawn, self.loss)
        metrics = {
            "loss": loss + generator_loss - minus(of_twin, self.loss),
            "generator_loss": generator_loss,
            "real_score": of_real.mean(),
            "drawn_score": of_drawn.mean(),
        }
        if self.gradient_penalty and self.model.training:
            penalty = self._penalty(x, drawn.detach(), y)
            metrics["loss"] = metrics["loss"] + self.gradient_penalty * penalty
            metrics["gradient_penalty"] = penalty
        return metrics

    def _penalty(self, x: Tensor, drawn: Tensor, y: Tensor) -> Tensor:
        share = self.noise.uniform("between", 1, 1, 1) if self.loss == "wasserstein" else 1.0
        x = (share * x + (1 - share) * drawn).requires_grad_()
        scores = self.model.discriminate(x, y)  # type: ignore[operator]
        (slope,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        squares = slope.flatten(1).float().square().sum(1)  # (B,)
        if self.loss == "wasserstein":
            return ((squares + 1e-12).sqrt() - 1).square().mean()
        return squares.mean() / 2

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if self.update == "alternating":
            # Without gradients the other player's weights and moments stay as they are, as with two optimisers.
            turn = self.trainer.global_step % (self.discriminator_steps + 1)
            waits = self.model.generator if turn < self.discriminator_steps else self.model.discriminator
            waits.zero_grad(set_to_none=True)
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def samples(self, noise: Noise, labels: Tensor) -> Tensor:
        return self.model.generate(noise.normal("z", self.model.latent_dim), labels)  # type: ignore[operator]


def discriminator_loss(of_real: Tensor, of_drawn: Tensor, loss: LossName) -> Tensor:
    if loss == "hinge":
        return (1 - of_real).relu().mean() + (1 + of_drawn).relu().mean()
    return minus(of_real, loss) + (F.softplus(of_drawn) if loss == "non_saturating" else of_drawn).mean()


def minus(scores: Tensor, loss: LossName) -> Tensor:
    """What falls as scores rise: the generator's loss."""
    return F.softplus(-scores).mean() if loss == "non_saturating" else -scores.mean()
