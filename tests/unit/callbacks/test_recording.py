"""A film of an episode is written, and what cannot be filmed is said before the training."""

from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("gymnasium", reason="gymnasium, the extra rl, is not installed")

from scaledl.callbacks.recording import Camera, Recording, picture_of
from scaledl.data.environment import Environment
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.actor_critic import ActorCritic
from scaledl.tasks.policy_gradient import PolicyGradient


def actor(env: str, in_dim: int, num_actions: int) -> PolicyGradient:
    model = ModelBuilder(partial(ActorCritic, in_dim, num_actions, [8]))
    return PolicyGradient(model, partial(torch.optim.Adam, lr=1e-3), env, n_steps=4)


def test_a_training_leaves_a_film_of_one_whole_episode(fit, tmp_path: Path) -> None:
    task, data = actor("CartPole-v1", 4, 2), Environment("CartPole-v1", 4, 4, num_val=1, num_test=0)
    fit(Recording(every=1), max_steps=2, task=task, data=data)
    film = Image.open(tmp_path / "samples" / "episode.gif")
    task.eval()
    length = int(task.play([0])[1])
    assert film.n_frames == length + 1
    assert (film.size, film.info["loop"]) == ((300, 200), 0)


@pytest.mark.parametrize(("env", "in_dim", "num_actions"), [("Acrobot-v1", 6, 3), ("MountainCar-v0", 2, 3)])
def test_pictures_follow_the_state(env: str, in_dim: int, num_actions: int) -> None:
    task, camera = actor(env, in_dim, num_actions), Camera(env, every=20, max_frames=6)
    task.configure_model()
    task.play([0], camera)
    pictures = {frame.tobytes() for frame in camera.frames}
    assert 3 <= len(pictures) <= 7
    assert all(len(frame.getcolors(100_000)) > 3 for frame in camera.frames)


def test_only_what_acts_is_filmed(fit) -> None:
    with pytest.raises(ValueError, match="films a task that acts, not Scripted"):
        fit(Recording(), max_steps=1)


def test_what_needs_pygame_says_so(fit, monkeypatch: pytest.MonkeyPatch) -> None:
    assert picture_of("FrozenLake-v1") is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install pygame"):
        fit(Recording(), max_steps=1, task=actor("FrozenLake-v1", 16, 4), data=Environment("FrozenLake-v1", 4, 4))


def test_a_film_needs_frames() -> None:
    with pytest.raises(ValueError, match=r"callbacks\.recording\.every=0"):
        Recording(every=0)
