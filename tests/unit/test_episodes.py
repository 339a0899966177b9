"""Episodes are functions of seeds and actions, and a state is gone on from by replaying."""

import sys

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium, the extra rl, is not installed")

from scaledl.episodes import ENDED, LAST_RETURN, LENGTH, STEPS, Episodes, episode_seed, make, spaces, state_of  # noqa: E402


def cart_poles(first: int, num: int, state: torch.Tensor | None = None) -> Episodes:
    return Episodes("CartPole-v1", num, lambda slot, number: episode_seed(3, first + slot, number), state)


def played(episodes: Episodes, actions: np.ndarray) -> np.ndarray:
    """Observations (T, num, 4) seen before each of the actions (T, num), and after the last."""
    seen = []
    for action in actions:
        seen.append(episodes.obs.copy())
        episodes.step(action)
        episodes.restart()
    return np.stack([*seen, episodes.obs])


def test_a_slot_s_trajectory_does_not_depend_on_its_neighbours() -> None:
    actions = np.random.default_rng(0).integers(0, 2, (80, 4))
    together = played(cart_poles(0, 4), actions)
    apart = [played(cart_poles(first, 2), actions[:, first : first + 2]) for first in (0, 2)]
    np.testing.assert_array_equal(together, np.concatenate(apart, axis=1))
    assert len(np.unique(together[0, :, 0])) == 4  # each slot has a seed of its own


def test_a_state_goes_on_within_its_episodes() -> None:
    actions = np.random.default_rng(1).integers(0, 2, (70, 3))
    straight = cart_poles(0, 3)
    played(straight, actions[:47])
    state = torch.from_numpy(straight.state).clone()
    assert state[:, ENDED].max() > 0
    assert state[:, LENGTH].max() > 0
    resumed = cart_poles(0, 3, state)
    np.testing.assert_array_equal(resumed.returns, straight.returns)
    np.testing.assert_array_equal(played(resumed, actions[47:]), played(straight, actions[47:]))
    np.testing.assert_array_equal(resumed.state, straight.state)


def test_an_episode_that_is_over_stands_still_and_the_next_one_is_another() -> None:
    episodes = cart_poles(0, 1)
    begin, steps = episodes.obs.copy(), 0
    while not episodes.over[0]:
        reward, terminated = episodes.step(np.ones(1, int))
        steps += 1
        assert reward[0] == 1
    assert terminated[0]
    last = episodes.obs.copy()
    reward, terminated = episodes.step(np.ones(1, int))
    assert (reward[0], terminated[0]) == (0, False)
    np.testing.assert_array_equal(episodes.obs, last)
    assert episodes.state[0, [ENDED, LENGTH, LAST_RETURN, STEPS]].tolist() == [1, 0, steps, steps]
    episodes.restart()
    assert not episodes.over[0]
    assert not np.array_equal(episodes.obs, begin)


def test_a_time_limit_ends_an_episode_without_terminating_it() -> None:
    episodes = Episodes("MountainCar-v0", 1, lambda slot, number: 0)
    ends = [(episodes.step(np.ones(1, int))[1][0], bool(episodes.over[0])) for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]


def test_classes_are_seen_as_one_hot_vectors() -> None:
    assert (found := spaces("FrozenLake-v1")).in_dim == 16
    assert (found.num_actions, found.max_steps) == (4, 100)
    obs = Episodes("FrozenLake-v1", 1, lambda slot, number: 0).obs
    assert obs.tolist() == [[1.0] + [0.0] * 15]
    assert state_of("FrozenLake-v1", 2).shape == (2, 104)


def test_what_cannot_be_served_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"data\.env=CartPole-v9"):
        make("CartPole-v9")
    with pytest.raises(ValueError, match="take an environment with Discrete actions"):
        make("Pendulum-v1")
    with pytest.raises(ValueError, match="may never end"):
        make("Blackjack-v1")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r"scaledl\[rl\]"):
        make("CartPole-v1")
