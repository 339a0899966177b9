"""A film of what the policy does."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from PIL import Image, ImageDraw

from scaledl.callbacks.test import at_best
from scaledl.episodes import LENGTH, Episodes
from scaledl.tasks.reinforcement import Reinforcement

WIDTH, HEIGHT = 300, 200
SCALE = 4  # pictures are drawn so much larger, then made smaller, which smooths their edges
COLORS = {"ink": "#222222", "pole": "#c8813b", "goal": "#3a9d5d", "ground": "#9a9a9a"}


class Recording(pl.Callback):
    """Plays one episode with the best weights when training has ended, and writes it to `samples/episode.gif`.

    Carts, mountain cars and acrobots are drawn here, from their state; other environments by gymnasium, which needs
    pygame for most.

    Args:
        seed: of the episode.
        every: frames are drawn of every so many steps.
        max_frames: at most.

    Raises:
        ValueError: at the start of the training, if the task is not one that acts, or cannot be drawn.
    """

    def __init__(self, seed: int = 0, every: int = 2, max_frames: int = 250):
        if every < 1 or max_frames < 1:
            raise ValueError(f"callbacks.recording.every={every} and max_frames={max_frames} must be at least 1")
        self.seed, self.every, self.max_frames = seed, every, max_frames
        self.run_dir = Path()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not isinstance(pl_module, Reinforcement):
            raise ValueError(
                f"callbacks.recording films a task that acts, not {type(pl_module).__name__}: remove it "
                "(~callbacks.recording)"
            )
        if picture_of(pl_module.env) is None and importlib.util.find_spec("pygame") is None:
            raise ValueError(
                f"callbacks.recording needs pygame to draw {pl_module.env}: pip install pygame, or remove it "
                "(~callbacks.recording)"
            )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Reinforcement) -> None:  # type: ignore[override]
        was_training = pl_module.training
        pl_module.eval()
        camera = Camera(pl_module.env, self.every, self.max_frames)
        with at_best(trainer, self.run_dir), trainer.strategy.precision_plugin.forward_context():
            returns, _ = pl_module.play([self.seed], camera)  # by all ranks: a sharded model answers to all together
        pl_module.train(was_training)
        if trainer.is_global_zero:
            (self.run_dir / "samples").mkdir(exist_ok=True)
            camera.write(self.run_dir / "samples" / "episode.gif", f"return {returns.item():g}")


class Camera:
    """Keeps frames of the first of the environments it is shown."""

    def __init__(self, env: str, every: int = 1, max_frames: int = 10_000) -> None:
        self.picture = picture_of(env)
        self.render_mode = None if self.picture else "rgb_array"
        self.every, self.max_frames = every, max_frames
        self.frames: list[Image.Image] = []

    def __call__(self, episodes: Episodes) -> None:
        steps = int(episodes.state[0, LENGTH])
        if not episodes.over[0] and (steps % self.every or len(self.frames) >= self.max_frames):
            return
        env = episodes.envs[0]
        if self.picture is None:
            self.frames.append(Image.fromarray(env.render()))
            return
        image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
        self.picture(ImageDraw.Draw(image), env.unwrapped)
        self.frames.append(image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))

    def write(self, path: Path, text: str) -> None:
        for frame in self.frames:
            ImageDraw.Draw(frame).text((6, 4), text, fill=COLORS["ink"])
        first, *others = (frame.quantize(32) for frame in self.frames)
        # 50 frames a second are what most programs still show at their speed; the last one stays.
        durations = [20 * self.every] * len(others) + [1500]
        first.save(path, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)


def picture_of(env: str) -> Any:
    """The function that draws an environment by its state; None where there is none."""
    return {"CartPole": _cart, "MountainCar": _mountain, "Acrobot": _acrobot}.get(env.split("-")[0])


def _line(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], color: str, width: float) -> None:
    """Through points in the picture's own units, with round ends."""
    scaled = [(SCALE * x, SCALE * y) for x, y in points]
    draw.line(scaled, COLORS[color], round(SCALE * width), joint="curve")
    for x, y in (scaled[0], scaled[-1]):
        _disc(draw, x / SCALE, y / SCALE, width / 2, color)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: str) -> None:
    draw.ellipse(
        [SCALE * (x - radius), SCALE * (y - radius), SCALE * (x + radius), SCALE * (y + radius)], COLORS[color]
    )


def _cart(draw: ImageDraw.ImageDraw, env: Any) -> None:
    position, _, angle, _ = env.state
    unit, ground = WIDTH / (2 * env.x_threshold), 150.0
    x = WIDTH / 2 + unit * position
    _line(draw, [(0, ground), (WIDTH, ground)], "ground", 1)
    draw.rectangle([SCALE * (x - 20), SCALE * (ground - 12), SCALE * (x + 20), SCALE * (ground + 12)], COLORS["ink"])
    length = 2 * env.length * unit * 1.6  # a little longer than it is, to be seen
    top = (x + length * math.sin(angle), ground - 12 - length * math.cos(angle))
    _line(draw, [(x, ground - 12), top], "pole", 7)


def _mountain(draw: ImageDraw.ImageDraw, env: Any) -> None:
    def place(position: float) -> tuple[float, float]:
        share = (position - env.min_position) / (env.max_position - env.min_position)
        return WIDTH * share, HEIGHT - 30 - 60 * (math.sin(3 * position) + 1)

    _line(draw, [place(p) for p in np.linspace(env.min_position, env.max_position, 100)], "ground", 2)
    x, y = place(env.goal_position)
    _line(draw, [(x, y), (x, y - 30)], "goal", 3)
    x, y = place(env.state[0])
    _disc(draw, x, y - 7, 7, "ink")


def _acrobot(draw: ImageDraw.ImageDraw, env: Any) -> None:
    unit, (x, y) = 42.0, (WIDTH / 2, HEIGHT / 2)
    first, second = env.state[0], env.state[0] + env.state[1]
    _line(draw, [(0, y - unit), (WIDTH, y - unit)], "goal", 1)
    middle = (x + unit * math.sin(first), y + unit * math.cos(first))
    end = (middle[0] + unit * math.sin(second), middle[1] + unit * math.cos(second))
    _line(draw, [(x, y), middle], "pole", 8)
    _line(draw, [middle, end], "pole", 8)
    for joint in ((x, y), middle):
        _disc(draw, *joint, 5, "ink")
