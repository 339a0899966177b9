"""Checkpoints of a run: `checkpoints/step_00000100/` with `state.pt` and a `manifest.json` that makes it valid.

A checkpoint is written in a hidden folder beside and renamed, so that one that can be seen is whole; its manifest
holds a checksum, so that one damaged later is noticed and the one before it is used. Only weights and plain values are
stored and read (`weights_only`): no checkpoint can run code.
"""

import json
import os
import shutil
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from scaledl import atomic

STATE, MANIFEST = "state.pt", "manifest.json"


def folder_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:08d}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def all_of(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, whole or damaged."""
    found = (run_dir / "checkpoints").glob("step_*")
    return sorted((path for path in found if path.name.removeprefix("step_").isdigit()), key=step_of)


def problem_of(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or None."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        size = (checkpoint / STATE).stat().st_size
        if size != manifest["bytes"]:
            return f"{STATE} has {size:,} bytes of {manifest['bytes']:,}"
        if _crc32(checkpoint / STATE) != manifest["crc32"]:
            return f"{STATE} does not match its checksum"
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def latest(run_dir: Path) -> Path | None:
    """The newest whole checkpoint. Says so when a newer one is damaged.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    damaged = []
    for checkpoint in reversed(all_of(run_dir)):
        problem = problem_of(checkpoint)
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


def best(run_dir: Path) -> Path | None:
    """The checkpoint of the best monitored value, if it is there and whole."""
    noted = best_of(run_dir)
    if noted is None:
        return None
    checkpoint = folder_of(run_dir, noted["step"])
    problem = problem_of(checkpoint)
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
        problem = problem_of(found)
        if problem:
            raise ValueError(f"{found} is damaged: {problem}")
        return found
    if which not in ("best", "last"):
        raise ValueError(f"--checkpoint {which}: give best, last or the number of a step")
    checkpoint = (best(run_dir) if which == "best" else None) or latest(run_dir)
    if checkpoint is None:
        raise FileNotFoundError(f"{run_dir} holds no checkpoint yet; train it first")
    return checkpoint


def load_model_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint's task, on CPU."""
    return torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)["state_dict"]


class CheckpointFolders(CheckpointIO):
    """Writes and reads the folders above for Lightning."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        beside = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir(parents=True)
            with open(beside / STATE, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            manifest = {"bytes": (beside / STATE).stat().st_size, "crc32": _crc32(beside / STATE)}
            atomic.write_text(beside / MANIFEST, json.dumps(manifest))
            shutil.rmtree(path, ignore_errors=True)
            os.rename(beside, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            shutil.rmtree(beside, ignore_errors=True)
            free = shutil.disk_usage(next(parent for parent in path.parents if parent.exists())).free / 2**20
            raise OSError(
                f"the checkpoint {path} could not be written ({str(error).splitlines()[0]}; {free:,.0f} MiB free); the"
                " checkpoints before it are whole. Free some space and run the same command again"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return torch.load(Path(path) / STATE, map_location=map_location, weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Hidden first, so that a kill in between leaves no half of a checkpoint in sight."""
        hidden = Path(path).with_name(f".{Path(path).name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(path, hidden)
        shutil.rmtree(hidden)


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value
