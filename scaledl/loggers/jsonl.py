"""The run directory's own log: one JSON object a line, flushed at once, continued by a resumed run."""

import json
import math
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from scaledl.loggers.lines import read, rewind

__all__ = ["JsonlLogger", "read", "rewind"]


class JsonlLogger(Logger):
    """Appends `{"step": ..., name: value, ...}` to `path`; what is not finite becomes null, as JSON has none."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self._file: TextIO | None = None

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self._file is None:
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the run)
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run directory's config.yaml holds them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
