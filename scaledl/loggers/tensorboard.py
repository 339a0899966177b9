"""TensorBoard's event files: metrics by step, the run's pictures and texts, its config and results."""

from pathlib import Path
from typing import Any

import matplotlib.image
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from scaledl.loggers.base import RunLogger
from scaledl.loggers.drawn import TEXTS, Drawn, Watched


class TensorBoard(RunLogger, TensorBoardLogger):
    """Writes into `run_dir/tensorboard`; an attempt that goes on takes back what came after its step."""

    def __init__(self, run_dir: str):
        super().__init__(save_dir=run_dir, name="tensorboard", version="")
        self._watched: Watched | None = None

    def begin(self, step: int, facts: dict[str, Any]) -> None:
        self._kwargs["purge_step"] = step + 1 if step else None
        self._watched = Watched(Path(self.save_dir))
        text = "\n".join(f"    {name}: {value}" for name, value in facts.items())  # as code, to Markdown
        self.experiment.add_text("run", text, step)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        super().log_metrics(metrics, step)
        if any(name.startswith("val/") for name in metrics):
            self._send(step or 0)

    def end(self, summary: dict[str, Any]) -> None:
        self._send(summary["steps"])
        self.experiment.flush()

    def _send(self, step: int) -> None:
        for each in self._watched.new() if self._watched else []:
            self._add(each, step if each.step is None else each.step)

    def _add(self, each: Drawn, step: int) -> None:
        if each.path.suffix in TEXTS:
            lines = each.path.read_text(encoding="utf-8").splitlines()
            self.experiment.add_text(each.name, "\n".join(f"    {line}" for line in lines), step)
        elif each.path.suffix == ".png":
            pixels = matplotlib.image.imread(each.path)
            self.experiment.add_image(
                each.name, pixels[..., :3] if pixels.ndim == 3 else pixels[..., None], step, dataformats="HWC"
            )
