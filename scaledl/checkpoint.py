"""Which checkpoints a run has: `checkpoints/step_00000100/`, whose files are distributed/storage.py's.

A checkpoint is written in a hidden folder beside and renamed, so that one that can be seen is whole; its manifest
holds checksums, so that one damaged later is noticed and the one before it is used.
"""

import json
import os
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from scaledl import atomic
from scaledl.distributed import storage
from scaledl.distributed.pieces import Pieces


def folder_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:08d}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def begin_with(run_dir: Path, weights: dict[str, Pieces]) -> None:
    """Write the checkpoint of step 0, of weights alone (`weights/<name>`): what serves as it is, or is trained on."""
    folder = folder_of(run_dir, 0)
    folder.mkdir(parents=True)
    storage.save(folder, weights, {"pytorch-lightning_version": version("lightning")})


def all_of(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, whole or damaged."""
    found = (run_dir / "checkpoints").glob("step_*")
    return sorted((path for path in found if path.name.removeprefix("step_").isdigit()), key=step_of)


def latest(run_dir: Path) -> Path | None:
    """The newest whole checkpoint. Says so when a newer one is damaged.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    damaged = []
    for checkpoint in reversed(all_of(run_dir)):
        problem = storage.problem_of(checkpoint)
        if problem is None:
            return checkpoint
        damaged.append(f"{checkpoint} is damaged: {problem}")
        warnings.warn(f"{damaged[-1]}; using the one before it", stacklevel=2)
    if damaged:
        raise ValueError("\n".join([*damaged, "no whole checkpoint is left; start anew with another run_id"]))
    return None


def best_of(run_dir: Path) -> dict[str, Any] | None:
    """Metric, value and step of the best checkpoint, if it is still there."""
    try:
        noted = json.loads((run_dir / "checkpoints" / "best.json").read_text())
        return noted if folder_of(run_dir, noted["step"]).exists() else None
    except (OSError, ValueError, KeyError):
        return None


def clear_after(run_dir: Path, step: int) -> None:
    """Put aside what lies in the way of a run that goes on from `step`: damaged newer checkpoints, halves of a save."""
    for checkpoint in all_of(run_dir):
        if step_of(checkpoint) > step:
            aside = checkpoint.with_name(f"damaged_{checkpoint.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(checkpoint, aside)
    for leftover in (run_dir / "checkpoints").glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for folder in (run_dir, run_dir / "checkpoints"):
        atomic.clear(folder)


def best(run_dir: Path) -> Path | None:
    """The checkpoint of the best monitored value, if it is there and whole."""
    noted = best_of(run_dir)
    if noted is None:
        return None
    checkpoint = folder_of(run_dir, noted["step"])
    problem = storage.problem_of(checkpoint)
    if problem is not None:
        warnings.warn(f"the best checkpoint, {checkpoint}, is damaged: {problem}", stacklevel=2)
    return checkpoint if problem is None else None


def choose(run_dir: Path, which: str) -> Path:
    """The checkpoint of a run that `which` names: `best` (else the last), `last`, or a step.

    Raises:
        FileNotFoundError: the run directory does not exist or holds no such checkpoint.
        ValueError: `which` is none of these.
    """
    if not (run_dir / "config.yaml").is_file():
        raise FileNotFoundError(
            f"{run_dir} is no run directory (it holds no config.yaml); runs lie in runs/<experiment>/<run_id>"
        )
    if which.isdigit():
        found = folder_of(run_dir, int(which))
        if not found.exists():
            steps = ", ".join(str(step_of(checkpoint)) for checkpoint in all_of(run_dir)) or "none"
            raise FileNotFoundError(f"{run_dir} holds no checkpoint of step {which}; there are: {steps}")
        problem = storage.problem_of(found)
        if problem:
            raise ValueError(f"{found} is damaged: {problem}")
        return found
    if which not in ("best", "last"):
        raise ValueError(f"--checkpoint {which}: give best, last or the number of a step")
    checkpoint = (best(run_dir) if which == "best" else None) or latest(run_dir)
    if checkpoint is None:
        raise FileNotFoundError(f"{run_dir} holds no checkpoint yet; train it first")
    return checkpoint


def weights_of(checkpoint: Path) -> str:
    """What the names of a checkpoint's weights begin with: of the averaged ones where the run averaged them."""
    return "ema/" if any(name.startswith("ema/") for name in storage.sizes(checkpoint)) else "weights/"


def load_model_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint's task, on the host; of the averaged weights where the run averaged them."""
    prefix = weights_of(checkpoint)
    return {name.removeprefix(prefix): tensor for name, tensor in storage.load_whole(checkpoint, prefix).items()}


def remove(checkpoint: Path) -> None:
    """Hidden first, so that a kill in between leaves no half of a checkpoint in sight."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(checkpoint, hidden)
    shutil.rmtree(hidden)
