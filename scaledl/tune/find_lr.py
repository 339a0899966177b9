"""`scaledl find-lr`: which learning rate an experiment begins to learn with, and which is too much for it."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from matplotlib.figure import Figure
from omegaconf import open_dict
from rich.console import Console

from scaledl import atomic, build, run_directory
from scaledl.callbacks.grid_update import GridUpdate
from scaledl.callbacks.init_from import InitFrom
from scaledl.callbacks.l1 import L1
from scaledl.callbacks.lr_range import LrRange, smoothed, suggestion
from scaledl.callbacks.predictions import save
from scaledl.callbacks.watchdog import HangWatchdog
from scaledl.config.validate import ConfigError
from scaledl.distributed import group
from scaledl.tables import facts_table
from scaledl.train import checked, composed, quiet

_KEPT = (L1, GridUpdate, HangWatchdog)  # what a training learns from, or hangs without; the rest logs, draws and saves


def find_lr(
    words: list[str], folders: list[Path], allowed: list[str], low: float, high: float, num_steps: int
) -> float | None:
    """Train once with growing rates, save nothing of it; the suggested optimizer.lr, also in the run's directory.

    Raises:
        ConfigError: the config or the range is wrong.
        ValueError: model, task, data and strategy do not fit.
    """
    quiet()
    config = composed(words, folders, allowed)
    own = config.optimizer.get("lr")
    if not 0 < low < high or not own:
        problem = f"--min-lr {low:g} and --max-lr {high:g} must be rising numbers above 0"
        raise ConfigError([problem if own else f"optimizer.lr={own}: give the rate that the groups' are relative to"])
    run_dir, begins = Path(config.run_dir), config.init_from
    with open_dict(config):
        config.scheduler = None
        config.federation = None  # a client trains as one process does, on its own share of the samples
        config.trainer.max_steps, config.trainer.max_epochs = num_steps, -1
        if config.task.get("update") == "alternating":  # two optimisers: Lightning counts both
            config.trainer.max_steps = 2 * num_steps
    data, task, strategy, _ = checked(config)
    if group.world_size() > 1:
        group.join()
    grow = LrRange(low, high, num_steps, own)
    kept: list[pl.Callback] = [InitFrom(begins)] if begins else []
    kept += [c for node in config.callbacks.values() if node and isinstance(c := build.instantiate(node), _KEPT)]
    trainer = build.trainer(config, run_dir, data, strategy, instead=[*kept, grow])
    trainer.fit(task, datamodule=data)
    found = suggestion(grow.rates, grow.losses)

    def write() -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        result = {"suggestion": found, "optimizer.lr": own, "rates": grow.rates, "losses": grow.losses}
        atomic.write_text(run_dir / "lr_finder.json", json.dumps(run_directory.finite(result)) + "\n")
        save(_figure(grow, found, own), run_dir, "lr_finder.png")
        Console().print(facts_table("scaledl find-lr", _told(grow, found, own, run_dir)))

    group.agreed(write)
    return found


def _told(grow: LrRange, found: float | None, own: float, run_dir: Path) -> dict[str, Any]:
    ended = f"{len(grow.losses)} steps, optimizer.lr from {grow.rates[0]:.2g} to {grow.rates[-1]:.2g}"
    nothing = "none: the loss did not fall; try other bounds, or more --steps"
    return {
        "trained": ended,
        "suggestion": f"optimizer.lr={found:.2g}" if found else nothing,
        "config": f"optimizer.lr={own:g}",
        "picture": run_dir / "plots" / "lr_finder.png",
    }


def _figure(grow: LrRange, found: float | None, own: float) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    count = len(grow.losses)
    path = smoothed(grow.losses)
    axes.plot(grow.rates[:count], grow.losses, color="tab:blue", alpha=0.3, linewidth=1, label="loss of a step")
    axes.plot(grow.rates[:count], path, color="tab:blue", label="smoothed")
    if found:
        axes.axvline(found, color="tab:green", linestyle="--", label=f"suggestion: {found:.2g}")
    axes.axvline(own, color="tab:gray", linestyle=":", label=f"config: {own:g}")
    shown = [value for value in path if value == value and abs(value) != float("inf")]
    if shown:
        room = 0.1 * (path[0] - min(shown)) or 1e-3
        axes.set_ylim(min(shown) - abs(room), max(shown[: max(1, len(shown) // 2)]) + 3 * abs(room))
    axes.set(xscale="log", xlabel="optimizer.lr", ylabel="train/loss")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
