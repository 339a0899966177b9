"""Noise is added to data step by step; a network learns to take it away again, and so makes data from noise."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.base import Task, check_range

ScheduleName = Literal["linear", "cosine", "flow"]


class Diffusion(Task):
    """Mean squared error of what is foretold of x_t = a_t · x0 + s_t · eps (Ho et al. 2020, eq. 14).

    Reads `x` (B, C, H, W) and, for conditional models, `y` (B,). The model has `in_shape`, and foretells, from x_t, the
    time t / num_steps and y, one of three, from each of which follow the others:
    - "eps": the noise (Ho et al. 2020); "x0": the data;
    - "v": the direction of the path, d · eps - c · x0: of the circle with c = s_t, d = a_t (Salimans & Ho 2022,
      appendix D), of the straight line with c = d = 1, which makes flow matching (Liu et al. 2023; Lipman et al. 2023).

    Args:
        num_classes: of the labels; null = unconditional.
        num_steps: T; times are 1 .. T.
        schedule: a_t and s_t (see `schedule_of`).
        label_dropout: share of the labels that are hidden in training, which guidance needs.
        guidance: w; samples follow (1 + w) · conditional - w · unconditional (Ho & Salimans 2022, eq. 6).
        sampler: "ddpm" draws from the posterior, "ddim" is its deterministic limit (Song et al. 2021); with
            schedule=flow the latter is Euler's method on the learned flow.
        sampling_steps: over equal parts of the times; null = num_steps.
        clip: keep the foretold data within its range while sampling.
        value_range: of the data, which is brought to [-1, 1].

    Raises:
        ValueError: if settings contradict each other, or at the start of the training, the data lie elsewhere.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        num_classes: int | None,
        value_range: list[float],
        scheduler: Callable[[Optimizer], Any] | None = None,
        num_steps: int = 1000,
        schedule: ScheduleName = "linear",
        target: Literal["eps", "x0", "v"] = "eps",
        label_dropout: float = 0.1,
        guidance: float = 0.0,
        sampler: Literal["ddpm", "ddim"] = "ddpm",
        sampling_steps: int | None = None,
        clip: bool = True,
    ):
        super().__init__(model, optimizer, scheduler)
        sampling_steps = num_steps if sampling_steps is None else sampling_steps
        if not 1 <= sampling_steps <= num_steps:
            raise ValueError(
                f"sampling_steps={sampling_steps} must lie between 1 and num_steps={num_steps}; null takes them all"
            )
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout={label_dropout} must lie in [0, 1)")
        if guidance and (num_classes is None or label_dropout == 0):
            raise ValueError(
                f"guidance={guidance} needs a model of num_classes that has also learned without a label: set "
                "model.num_classes and task.label_dropout=0.1, or guidance=0"
            )
        if schedule == "flow" and target == "eps":
            raise ValueError("target=eps says nothing of the data where schedule=flow has noise only: take target=v")
        if len(value_range) != 2 or value_range[0] >= value_range[1]:
            raise ValueError(f"value_range={value_range}: give the lowest and the highest value of the data")
        self.num_classes, self.num_steps, self.schedule, self.target = num_classes, num_steps, schedule, target
        self.conditional = num_classes is not None
        self.label_dropout, self.guidance, self.sampler, self.clip = label_dropout, guidance, sampler, clip
        low, high = self.value_range = value_range[0], value_range[1]
        self.middle, self.half = (low + high) / 2, (high - low) / 2
        self.a, self.s = schedule_of(schedule, num_steps)
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.sampling_times = torch.linspace(num_steps, 0, sampling_steps + 1).round().long().tolist()

    def on_fit_start(self) -> None:
        check_range(self, self.value_range, "task.value_range says", "what they are for task.value_range")

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x0 = (batch["x"].float() - self.middle) / self.half  # (B, C, H, W)
        t = 1 + self.noise.integers("t", self.num_steps)  # (B,)
        eps = self.noise.normal("eps", *x0.shape[1:])
        a, s = (of[t].reshape(-1, 1, 1, 1) for of in self._shares(t.device))
        x_t = (a * x0 + s * eps).type_as(batch["x"])
        y = None
        if self.num_classes is not None:
            y = batch["y"]
            if self.model.training:
                y = y.masked_fill(self.noise.bernoulli("no_label", self.label_dropout), self.num_classes)
        if self.target == "v":
            c, d = (1.0, 1.0) if self.schedule == "flow" else (s, a)
            wanted = d * eps - c * x0
        else:
            wanted = eps if self.target == "eps" else x0
        return {"loss": F.mse_loss(self.model(x_t, t / self.num_steps, y).float(), wanted)}

    def _shares(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """a and s (num_steps + 1,) in fp32 on a device, copied there once: a copy at each step would wait for it."""
        if device not in self._on:
            self._on[device] = self.a.float().to(device), self.s.float().to(device)
        return self._on[device]

    @torch.no_grad()
    def samples(self, noise: Noise, labels: Tensor) -> Tensor:
        """Data (n, C, H, W) of classes labels (n,), from noise alone."""
        x_t = noise.normal("x_T", *self.model.in_shape)  # type: ignore[misc]
        y = labels.to(x_t.device) if self.num_classes is not None else None
        for t, earlier in pairwise(self.sampling_times):
            x0, eps = self.foretold(x_t, t, y)
            if self.sampler == "ddim":
                x_t = self.a[earlier].item() * x0 + self.s[earlier].item() * eps
            else:
                mean, std = self.posterior(x_t, x0, t, earlier)
                x_t = mean + std * noise.normal(f"x_{earlier}", *x_t.shape[1:])
        return x_t * self.half + self.middle

    def foretold(self, x_t: Tensor, t: int, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """The data and the noise that x_t is made of, by the model, under guidance."""
        time = torch.full((len(x_t),), t / self.num_steps, device=x_t.device)
        if y is not None and self.guidance:
            unknown = torch.full_like(y, self.num_classes)  # type: ignore[arg-type]
            both = self.model(torch.cat((x_t, x_t)), torch.cat((time, time)), torch.cat((y, unknown))).float()
            conditional, unconditional = both.chunk(2)
            output = (1 + self.guidance) * conditional - self.guidance * unconditional
        else:
            output = self.model(x_t, time, y).float()
        a, s = self.a[t].item(), self.s[t].item()
        if self.target == "eps":
            x0, eps = (x_t - s * output) / a, output
        elif self.target == "x0":
            x0, eps = output, (x_t - a * output) / s
        else:
            c, d = (1.0, 1.0) if self.schedule == "flow" else (s, a)
            x0, eps = d * x_t - s * output, c * x_t + a * output  # for a · d + s · c = 1
        return (x0.clamp(-1, 1) if self.clip else x0), eps

    def posterior(self, x_t: Tensor, x0: Tensor, t: int, earlier: int) -> tuple[Tensor, float]:
        """Mean and standard deviation of q(x_earlier | x_t, x0) (Ho et al. 2020, eq. 7, between any two times)."""
        a_t, s_t, a, s = (of[time].item() for time in (t, earlier) for of in (self.a, self.s))
        kept = a_t / a  # x_t = kept · x_earlier + noise of variance `added`
        added = max(s_t**2 - (kept * s) ** 2, 0.0)
        return (kept * s**2 * x_t + a * added * x0) / s_t**2, added**0.5 * s / s_t


def schedule_of(name: ScheduleName, num_steps: int) -> tuple[Tensor, Tensor]:
    """(a, s), the shares of data and noise at the times 0 .. num_steps, float64; at time 0 there is no noise.

    linear: a² is the product of 1 - beta, beta from 1e-4 to 0.02 for 1,000 steps, more for fewer (Ho et al. 2020);
    cosine: a² follows a squared cosine (Nichol & Dhariwal 2021, eq. 17); flow: a = 1 - s, s grows evenly.
    """
    time = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    if name == "flow":
        return 1 - time, time
    if name == "linear":
        beta = torch.linspace(1e-4, 0.02, num_steps, dtype=torch.float64) * (1000 / num_steps)
    else:
        f = torch.cos((time + 0.008) / 1.008 * torch.pi / 2) ** 2
        beta = 1 - f[1:] / f[:-1]
    alpha_bar = torch.cat((torch.ones(1, dtype=torch.float64), (1 - beta.clamp(max=0.999)).cumprod(0)))
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
