"""Make the actions likelier after which more came than expected: REINFORCE, A2C and PPO."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.reinforcement import ASK_EVERY, Reinforcement


class PolicyGradient(Reinforcement):
    """Ascends E[log pi(a|s) · advantage] on rollouts of the present policy (Williams 1992, Sutton et al. 2000).

    One class for three methods, which differ in their settings: REINFORCE has whole episodes and no critic; A2C (Mnih
    et al. 2016) short rollouts and a critic; PPO (Schulman et al. 2017) several passes over a rollout, in which the
    policy's ratio to the one that acted is clipped.

    A sample is an environment: each rank steps those of its share of data.global_batch_size. Actions are drawn by noise
    keyed by (seed, rollout, slot), advantages are normalised over the whole rollout of all ranks, every loss is a mean
    over all of it. So the losses and gradients of a step are, up to rounding, those of one process. They stay so until
    rounding flips an action, which then changes the rest of a trajectory.

    Args:
        n_steps: steps of each environment in a rollout; null: one whole episode each.
        epochs: passes over a rollout.
        num_minibatches: optimiser steps of a pass. Each takes its own random part of the steps of every environment.
        gae_lambda: 1 trusts rewards alone, 0 the critic alone (see `generalized_advantages`).
        clip_range: how far the ratio may go from 1; null: no ratio, the plain gradient.
        decay_clip_range: linearly to 0 at the end of the training.
        normalize_advantages: to mean 0 and standard deviation 1; without a critic, the mean is the baseline.
        value_coef: of the critic's squared error.
        entropy_coef: of the entropy, which is added to what is maximised.

    Raises:
        ValueError: the settings contradict each other.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        env: str,
        scheduler: Callable[[Optimizer], Any] | None = None,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        n_steps: int | None = 128,
        epochs: int = 1,
        num_minibatches: int = 1,
        clip_range: float | None = None,
        decay_clip_range: bool = False,
        normalize_advantages: bool = False,
        value_coef: float = 0.5,
        entropy_coef: float = 0.0,
    ):
        super().__init__(model, optimizer, env, gamma, scheduler)
        if not 0 <= gae_lambda <= 1:
            raise ValueError(f"task.gae_lambda={gae_lambda} must lie in [0, 1]")
        if epochs < 1 or num_minibatches < 1:
            raise ValueError(f"task.epochs={epochs} and task.num_minibatches={num_minibatches} must be at least 1")
        if num_minibatches > 1 and (n_steps is None or n_steps % num_minibatches):
            raise ValueError(
                f"task.num_minibatches={num_minibatches} does not divide task.n_steps={n_steps}: choose a divisor"
            )
        if clip_range is None and epochs * num_minibatches > 1:
            raise ValueError(
                f"task.epochs={epochs} with task.num_minibatches={num_minibatches} learns from a rollout more than "
                "once, for which the plain gradient is wrong: set task.clip_range (0.2), or both to 1"
            )
        self.gae_lambda, self.n_steps, self.epochs, self.num_minibatches = gae_lambda, n_steps, epochs, num_minibatches
        self.clip_range, self.decay_clip_range = clip_range, decay_clip_range
        self.normalize_advantages, self.value_coef, self.entropy_coef = normalize_advantages, value_coef, entropy_coef
        self.steps_per_cycle = epochs * num_minibatches

    def scores(self, obs: Tensor) -> Tensor:
        return self.model.logits(obs)  # type: ignore[operator]

    def allocate(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        n, T = data.global_batch_size // data.world_size, self.n_steps or self.spaces.max_steps
        self._obs = self.carry("obs", n, T, self.spaces.in_dim)
        self._action = self.carry("action", n, T, dtype=torch.int64)
        self._log_prob, self._advantage, self._returns, self._weight = (
            self.carry(name, n, T) for name in ("log_prob", "advantage", "returns", "weight")
        )

    @torch.no_grad()
    def act(self) -> None:
        episodes = self.episodes
        n, T = self._action.shape
        uniform = self._noise_at(self.step).uniform("action", T, self.spaces.num_actions)
        gumbel = -(-uniform.log()).log()  # (n, T, A); argmax(logits + gumbel) is a draw from softmax(logits)
        next_obs = torch.zeros_like(self._obs)
        reward = np.zeros((n, T), np.float32)
        acted, terminated, over = (np.zeros((n, T), dtype=bool) for _ in range(3))
        episodes.restart()
        for t in range(T):
            acted[:, t] = ~episodes.over
            if self.n_steps is None and t % ASK_EVERY == 0 and not self.on_any_rank(bool(acted[:, t].any())):
                break
            obs = self._obs[:, t] = self.here(episodes.obs)
            action = self._action[:, t] = (self.scores(obs).float() + gumbel[:, t]).argmax(1)
            reward[:, t], terminated[:, t] = episodes.step(action.cpu().numpy())
            over[:, t] = episodes.over
            next_obs[:, t] = self.here(episodes.obs)
            if self.n_steps is not None:
                episodes.restart()
        logits, value = self.model(torch.cat((self._obs, next_obs)).flatten(0, 1))
        logits, value = logits.float().view(2, n, T, -1)[0], value.float().view(2, n, T).cpu()
        self._log_prob.copy_(logits.log_softmax(-1).gather(-1, self._action[..., None]).squeeze(-1))
        acted_, terminated_, over_ = (torch.from_numpy(found) for found in (acted, terminated, over))
        advantage = generalized_advantages(
            torch.from_numpy(reward), *value, terminated_, over_ | ~acted_, self.gamma, self.gae_lambda
        )
        self._returns.copy_(advantage + value[0])
        mine = advantage[acted_].double()
        count, total, squares = self.sums(
            torch.stack((acted_.sum().double(), mine.sum(), mine.square().sum()))
        ).tolist()
        if self.normalize_advantages:
            mean = total / count
            deviation = max(squares / count - mean**2, 0.0) ** 0.5
            advantage = (advantage - mean) / (deviation + 1e-8)
        self._advantage.copy_(advantage)
        self._weight.copy_(acted_ / count)

    def learn(self, rows: slice) -> dict[str, Tensor]:
        seen = (self._obs, self._action, self._log_prob, self._advantage, self._returns, self._weight)
        if self.n_steps is None:
            longest = int(self._weight.any(0).sum())
            parts = [tensor[rows, :longest].flatten(0, 1) for tensor in seen]
        elif self.num_minibatches == 1:
            parts = [tensor[rows].flatten(0, 1) for tensor in seen]
        else:
            part, size = self.step % self.num_minibatches, self.n_steps // self.num_minibatches
            order = self._noise_at(self.step - part).permutation("order", self.n_steps)[rows]
            chosen = order[:, part * size : (part + 1) * size]  # (n, size)
            at = torch.arange(*rows.indices(len(self._obs)), device=self.device)[:, None]
            parts = [tensor[at, chosen].flatten(0, 1) for tensor in seen]
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        # So that means over micro-batches, then over ranks, are means over what all have seen.
        parts[-1] = parts[-1] * (data.world_size * data.accumulation * self.num_minibatches)
        return self.losses(*parts)

    def losses(
        self, obs: Tensor, action: Tensor, log_prob_then: Tensor, advantage: Tensor, returns: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """Of steps (N, ...); weights (N,) are 1 / N where all count alike."""
        logits, value = self.model(obs)
        log_probs = logits.float().log_softmax(-1)  # (N, A)
        log_prob = log_probs.gather(1, action[:, None]).squeeze(1)
        gain = log_prob * advantage
        metrics: dict[str, Tensor] = {}
        if self.clip_range is not None:
            low, high = 1 - self._clip_range_now(), 1 + self._clip_range_now()
            ratio = (log_prob - log_prob_then).exp()
            gain = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
            with torch.no_grad():
                metrics["kl"] = (weight * (ratio - 1 - ratio.log())).sum()  # Schulman's estimate: never below 0
                metrics["clipped"] = (weight * ((ratio < low) | (ratio > high))).sum()
        policy_loss = -(weight * gain).sum(dtype=torch.float64).float()  # of normalised advantages little is left
        entropy = -(weight * (log_probs.exp() * log_probs).sum(1)).sum()
        value_loss = (weight * (value.float() - returns).square()).sum()
        loss = policy_loss + self.value_coef * value_loss - self.entropy_coef * entropy
        return {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, **metrics}

    def _clip_range_now(self) -> float:
        assert self.clip_range is not None
        left = 1 - self.step / self.trainer.max_steps if self.decay_clip_range else 1.0
        return self.clip_range * left

    def _noise_at(self, step: int) -> Noise:
        """Of this rank's slots at an optimiser step."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        first = step * data.global_batch_size + data.rank * len(self._obs)
        return Noise(self.model_builder.seed, first + torch.arange(len(self._obs), device=self.device))


def generalized_advantages(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    over: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """A_t = d_t + gamma lambda A_{t+1}, d_t = r_t + gamma V(s_{t+1}) - V(s_t), all (n, T) (Schulman et al. 2016).

    Args:
        next_value: of what followed, also where the time limit cut the episode off; not read where it `terminated`.
        over: whether the step was the last one of its episode, for whatever reason.
    """
    delta = reward + gamma * next_value * ~terminated - value
    factor = gamma * gae_lambda * ~over
    advantage = torch.empty_like(delta)
    following = torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        following = advantage[:, t] = delta[:, t] + factor[:, t] * following
    return advantage
