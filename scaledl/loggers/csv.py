"""The run's metrics as a table for spreadsheets and pandas, a row for each line of the log."""

import csv
import io
import math
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from scaledl import atomic
from scaledl.loggers.base import RunLogger


class CSV(RunLogger):
    """Appends to `path`, flushed at once; a metric that appears later becomes a column, empty in earlier rows.

    Lightning's own deletes the table of the run that is resumed.
    """

    def __init__(self, path: str):
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def begin(self, step: int, facts: dict[str, Any]) -> None:
        """Drop the rows after `step`, and a row torn by a kill."""
        if self.path.exists():
            self._columns, *rows = self._read() or [[]]
            self._write([row for row in rows if int(row[0]) <= step])

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        new = [name for name in ("step", *metrics) if name not in self._columns]
        if new:
            rows = self._read()[1:]
            self._columns += new
            self._write([[*row, *[""] * len(new)] for row in rows])
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)} | {"step": step}
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow([finite.get(name, "") for name in self._columns])

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run directory's config.yaml holds them."""

    def _read(self) -> list[list[str]]:
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        return list(csv.reader(io.StringIO(whole)))

    def _write(self, rows: list[list[str]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self._columns, *rows])
        atomic.write_text(self.path, text.getvalue())
