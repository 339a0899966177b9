"""Environments side by side (gymnasium), whose episodes are functions of seeds and actions alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

HEADER = 4  # of a slot's state: episodes ended, steps of the one at hand, return of the last one, steps of all
ENDED, LENGTH, LAST_RETURN, STEPS = range(HEADER)


@dataclass(frozen=True)
class Spaces:
    """What a model and a buffer must know of an environment."""

    in_dim: int
    num_actions: int
    max_steps: int


def make(env: str, render_mode: str | None = None) -> Any:
    """A gymnasium environment whose observations are vectors; classes become one-hot.

    Raises:
        ImportError: gymnasium is not installed.
        ValueError: there is no such environment, or it cannot be served.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError('environments come from gymnasium: pip install "scaledl[rl]"') from error
    try:
        drawn = {} if render_mode is None else {"render_mode": render_mode}  # which not every environment knows
        made = gymnasium.make(env, disable_env_checker=True, **drawn)
    except gymnasium.error.Error as error:
        raise ValueError(f"data.env={env}: {error}") from error
    if not isinstance(made.action_space, gymnasium.spaces.Discrete):
        raise ValueError(
            f"data.env={env} has actions {made.action_space}, but ours choose one of a few; take an environment with "
            "Discrete actions, such as CartPole-v1"
        )
    if made.spec is None or made.spec.max_episode_steps is None:
        raise ValueError(f"data.env={env} may never end; register it with max_episode_steps")
    space = made.observation_space
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        made = gymnasium.wrappers.FlattenObservation(made)
    return made


def spaces(env: str) -> Spaces:
    made = make(env)
    found = Spaces(made.observation_space.shape[0], int(made.action_space.n), made.spec.max_episode_steps)
    made.close()
    return found


def episode_seed(seed: int, slot: int, number: int) -> int:
    """Of the `number`-th episode in a slot of a training."""
    return int(np.random.SeedSequence([seed, slot, number]).generate_state(1)[0])


class Episodes:
    """`num` environments that step together; one whose episode is over stands still until `restart`.

    A plain loop, not gymnasium's SyncVectorEnv, which takes three times as long for small environments. Each episode
    has a seed of its own, so that a slot's state is the number of its episode and the actions in it: `state`, from
    which another process goes on by replaying them.

    Args:
        seed_of: (slot, number of the episode in it) -> seed.
        state: (num, HEADER + max_steps) float64 on the host, kept up to date; zeros are the beginning.
    """

    def __init__(
        self,
        env: str,
        num: int,
        seed_of: Callable[[int, int], int],
        state: Tensor | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.envs = [make(env, render_mode) for _ in range(num)]
        self.seed_of = seed_of
        self._first_action = int(self.envs[0].action_space.start)
        self.state = state_of(env, num).numpy() if state is None else state.numpy()
        self.obs = np.zeros((num, *self.envs[0].observation_space.shape), np.float32)
        self.over = np.zeros(num, dtype=bool)
        self.returns = np.zeros(num)  # of the episodes at hand
        for slot, row in enumerate(self.state):
            self._begin(slot)
            for action in row[HEADER : HEADER + int(row[LENGTH])]:
                self._act(slot, int(action))

    def restart(self) -> None:
        """Begin the next episode wherever one is over."""
        for slot in np.flatnonzero(self.over):
            self._begin(slot)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take actions (num,): rewards (num,) float32, and whether the episode came to an end of its own (num,) bool.

        `over` also says so of one that the time limit cut off; its last observation, still in `obs`, has a value.
        """
        rewards, terminated = np.zeros(len(self.envs), np.float32), np.zeros(len(self.envs), dtype=bool)
        for slot, action in enumerate(actions.tolist()):
            if self.over[slot]:
                continue
            row = self.state[slot]
            row[HEADER + int(row[LENGTH])] = action
            rewards[slot], terminated[slot], truncated = self._act(slot, action)
            row[LENGTH] += 1
            row[STEPS] += 1
            if terminated[slot] or truncated:
                self.over[slot] = True
                row[ENDED] += 1
                row[LENGTH] = 0
                row[LAST_RETURN] = self.returns[slot]
        return rewards, terminated

    def _begin(self, slot: int) -> None:
        self.obs[slot], _ = self.envs[slot].reset(seed=self.seed_of(slot, int(self.state[slot, ENDED])))
        self.over[slot], self.returns[slot] = False, 0.0

    def _act(self, slot: int, action: int) -> tuple[float, bool, bool]:
        self.obs[slot], reward, terminated, truncated, _ = self.envs[slot].step(action + self._first_action)
        self.returns[slot] += reward
        return reward, terminated, truncated


def state_of(env: str, num: int) -> Tensor:
    """The state of `num` slots at their beginning."""
    return torch.zeros(num, HEADER + spaces(env).max_steps, dtype=torch.float64)
