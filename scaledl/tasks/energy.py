"""Energy-based models: low where there are data, high elsewhere; nothing else is asked of the network."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.layers.precision import like_weights
from scaledl.tasks.base import Task, check_range


class Energy(Task):
    """Energy of data minus energy of samples that Langevin dynamics draw (Du & Mordatch 2019, arXiv:1903.08689).

    Its gradient is that of the negative log-likelihood, as far as the samples are the model's. Any model with one
    output (B, 1) for `x` (B, ...) serves. Training goes on from chains of earlier steps: each place of the global batch
    keeps `buffer_depth` of them, one of which is used at a step, so that nothing depends on ranks; checkpoints hold
    them. An evaluation starts from noise, as short-run dynamics do (Nijkamp et al. 2019). Only samples get a gradient
    on the way: parameters get theirs from one backward pass over data and samples together, on every strategy.

    Metrics: `loss`; `gap`, the difference alone; `energy` of the data.

    Args:
        value_range: of the data, which is brought to [-1, 1]; samples stay there.
        num_steps: of Langevin dynamics, x <- x - step_size · dE/dx + langevin_noise · N(0, 1).
        max_gradient: each number of dE/dx is kept within this.
        buffer_depth: chains for each place of the global batch; 0 begins each from noise.
        fresh: share of the chains that begin anew from noise.
        data_noise: standard deviation of the noise on data, against energies that are too steep.
        energy_penalty: times the mean squared energy, which holds the energies near zero.
        sampling_steps: of Langevin dynamics from noise, for `samples`.

    Raises:
        ValueError: if settings are out of range, or the model has more than one output.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        value_range: list[float],
        scheduler: Callable[[Optimizer], Any] | None = None,
        num_steps: int = 60,
        step_size: float = 10.0,
        langevin_noise: float = 0.005,
        max_gradient: float = 0.03,
        buffer_depth: int = 16,
        fresh: float = 0.05,
        data_noise: float = 0.005,
        energy_penalty: float = 0.1,
        sampling_steps: int = 256,
    ):
        super().__init__(model, optimizer, scheduler)
        if len(value_range) != 2 or value_range[0] >= value_range[1]:
            raise ValueError(f"value_range={value_range}: give the lowest and the highest value of the data")
        if min(num_steps, sampling_steps) < 1 or buffer_depth < 0 or not 0 <= fresh <= 1:
            raise ValueError(
                f"num_steps={num_steps} and sampling_steps={sampling_steps} must be at least 1, buffer_depth="
                f"{buffer_depth} at least 0, and fresh={fresh} a share"
            )
        self.num_steps, self.sampling_steps, self.buffer_depth, self.fresh = (
            num_steps,
            sampling_steps,
            buffer_depth,
            fresh,
        )
        self.step_size, self.langevin_noise, self.max_gradient = step_size, langevin_noise, max_gradient
        self.data_noise, self.energy_penalty = data_noise, energy_penalty
        low, high = self.value_range = value_range[0], value_range[1]
        self.middle, self.half = (low + high) / 2, (high - low) / 2
        self._chains: list[Tensor] = []  # (buffer_depth, B, dim) of each micro-batch of a step
        self._micro_batch = 0
        self._shape = torch.Size()

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = (batch["x"] - self.middle) / self.half  # (B, ...)
        self._shape = x.shape[1:]
        if self.model.training:
            x = x + self.data_noise * self.noise.normal("data", *self._shape, dtype=x.dtype)
        found = self.sampled(x)
        energies = self._of(torch.cat((x, found)))  # (2 B,)
        of_data, of_samples = energies.chunk(2)
        gap = of_data.mean() - of_samples.mean()
        loss = gap + self.energy_penalty * (of_data.square() + of_samples.square()).mean()
        return {"loss": loss, "gap": gap, "energy": of_data.mean()}

    def energy(self, x: Tensor) -> Tensor:
        """(B,) of data x (B, ...) as the dataset gives it: the higher, the less x is like the training data."""
        return self._of((x - self.middle) / self.half)

    def samples(self, noise: Noise, labels: Tensor) -> Tensor:
        """Data (n, ...) that Langevin dynamics find from noise; there are no classes, so labels only say how many."""
        assert self._shape, "an evaluation or a training step tells the shape"
        start = 2 * noise.uniform("start", *self._shape) - 1
        return self.langevin(start, noise, self.sampling_steps) * self.half + self.middle

    def sampled(self, x: Tensor) -> Tensor:
        """Samples for a training or evaluation batch x (B, ...), from this step's chains, which go on from them."""
        start = 2 * self.noise.uniform("start", *self._shape, dtype=x.dtype) - 1
        chains = self._chains[self._micro_batch] if self.model.training and self._chains else None
        if chains is None:
            return self.langevin(start, self.noise, self.num_steps)
        turn = self.trainer.global_step % self.buffer_depth
        anew = self.noise.bernoulli("anew", self.fresh)[:, None]
        going_on = torch.where(anew, start.flatten(1), chains[turn].to(start.dtype)).view_as(start)
        found = self.langevin(going_on, self.noise, self.num_steps)
        chains[turn] = found.flatten(1)
        return found

    def langevin(self, x: Tensor, noise: Noise, num_steps: int) -> Tensor:
        """x (B, ...) after num_steps down the energy, each with some noise (Welling & Teh 2011)."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone()
            for step in range(num_steps):
                x = x.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self._of(x).sum(), x)
                drift = self.step_size * gradient.clamp(-self.max_gradient, self.max_gradient)
                x = x - drift + self.langevin_noise * noise.normal(f"langevin/{step}", *x.shape[1:], dtype=x.dtype)
                x = x.clamp(-1, 1)
        return x.detach()

    def on_fit_start(self) -> None:
        check_range(self, self.value_range, "task.value_range says", "what they are for task.value_range")
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        sample = data.split("train").__getitems__(np.arange(1))["x"]
        self._shape, count = sample.shape[1:], data.micro_batch_size if self.buffer_depth else 0
        self._chains = []
        for number in range(data.accumulation if count else 0):
            places = torch.arange(count, device=self.device) + self._first(number)
            chains = 2 * Noise(self.model_builder.seed, places).uniform("chains", self.buffer_depth, sample.numel()) - 1
            self._chains.append(chains.transpose(0, 1).contiguous())  # (buffer_depth, B, dim)

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self._micro_batch = batch_idx % self.trainer.accumulate_grad_batches

    def carried(self) -> dict[str, list[tuple[int, Tensor]]]:
        held = [(self._first(number), chains) for number, chains in enumerate(self._chains)]
        return {"chains": held} if held else {}

    def _first(self, number: int) -> int:
        """Where in the global batch this rank's micro-batch `number` begins."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return (data.rank * data.accumulation + number) * data.micro_batch_size

    def _of(self, x: Tensor) -> Tensor:
        energies = self.model(like_weights(x, self.model)).float()  # (B, 1)
        if energies.shape[1:] != (1,):
            raise ValueError(
                f"the model gives {tuple(energies.shape[1:])} outputs a sample, but an energy is one: set "
                "model.out_dim=1"
            )
        return energies.squeeze(1)
