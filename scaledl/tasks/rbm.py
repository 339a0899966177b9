"""Contrastive divergence: a restricted Boltzmann machine is told apart data from what it makes of them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.base import Task, check_range


class ContrastiveDivergence(Task):
    """Free energy of data minus that of samples, num_steps of Gibbs sampling away from them (Hinton 2002, CD-k).

    Its gradient, with the samples fixed, is the rule of contrastive divergence. Reads `x` (B, ...) in [0, 1], taken for
    probabilities; the model is an `RBM`. The difference says little of how far training has come;
    `reconstruction` does, the mean squared error of the visible units' probabilities after half a step.

    Args:
        num_steps: k.
        sampling_steps: of Gibbs sampling from noise, for `samples`.

    Raises:
        ValueError: if a number of steps is below 1.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        num_steps: int = 1,
        sampling_steps: int = 200,
    ):
        super().__init__(model, optimizer, scheduler)
        if min(num_steps, sampling_steps) < 1:
            raise ValueError(f"num_steps={num_steps} and sampling_steps={sampling_steps} must be at least 1")
        self.num_steps, self.sampling_steps = num_steps, sampling_steps
        self._shape = torch.Size()

    def on_fit_start(self) -> None:
        check_range(self, (0, 1), "the machine's units take", "values that are probabilities")

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self._shape = batch["x"].shape[1:]
        v = batch["x"].flatten(1)  # (B, in_dim)
        away, first = self.gibbs(v, self.noise, self.num_steps)
        of_data, of_samples = self.energy(torch.cat((v, away))).chunk(2)
        loss = of_data.mean() - of_samples.mean()
        return {"loss": loss, "reconstruction": F.mse_loss(first.float(), v.float())}

    def energy(self, x: Tensor) -> Tensor:
        """Free energy (B,) of data x (B, ...)."""
        return self.model(x).float().squeeze(1)

    def samples(self, noise: Noise, labels: Tensor) -> Tensor:
        """Data (n, ...) from noise, as probabilities; there are no classes, so labels only say how many."""
        assert self._shape, "an evaluation or a training step tells the shape"
        start = noise.uniform("start", self._shape.numel())
        last = self.gibbs(start, noise, self.sampling_steps - 1)[0] if self.sampling_steps > 1 else start
        return self.gibbs(last, noise, 1, "last")[1].reshape(-1, *self._shape)

    @torch.no_grad()
    def gibbs(self, v: Tensor, noise: Noise, num_steps: int, name: str = "gibbs") -> tuple[Tensor, Tensor]:
        """Visible units (B, in_dim) after num_steps, and their probabilities after the first step."""
        probabilities = []
        for step in range(num_steps):
            p = self.model(v, noise.uniform(f"{name}/h/{step}", self.model.num_features))
            v = (noise.uniform(f"{name}/v/{step}", v.shape[1]) < p).type_as(v)
            probabilities.append(p)
        return v, probabilities[0]
