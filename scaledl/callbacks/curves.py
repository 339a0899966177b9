"""How a training went, at a glance."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from scaledl.loggers import jsonl


class Curves(pl.Callback):
    """Draws `plots/curves.png` from the run's log at the end: each training metric, with that of the validation."""

    def __init__(self) -> None:
        self.run_dir = Path()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            draw(jsonl.read(self.run_dir / "metrics.jsonl"), self.run_dir)


def draw(log: list[dict[str, Any]], run_dir: Path) -> None:
    from matplotlib.figure import Figure

    from scaledl.callbacks.predictions import save

    series = {split: _of(log, f"{split}/") for split in ("train", "val")}
    names = [name for name in {**series["train"], **series["val"]} if name != "skipped"]
    if not names:
        return
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, place)
        values: list[float] = []
        for split, found in series.items():
            if name in found:
                steps, ours = zip(*found[name], strict=True)
                axes.plot(steps, ours, label=split, marker="." if len(steps) < 30 else "", linewidth=1)
                values += ours
        if min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    save(figure, run_dir, "curves.png")


def _of(log: list[dict[str, Any]], prefix: str) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each metric; values that are not finite are left out."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in log:
        for name, value in line.items():
            if name.startswith(prefix) and isinstance(value, int | float):
                found.setdefault(name.removeprefix(prefix), []).append((line["step"], value))
    return found
