"""What a report reads of a run directory: its log, config, summary, model, pictures and texts. Nothing of torch."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from scaledl import run_directory
from scaledl.loggers.drawn import Drawn, drawn
from scaledl.loggers.lines import read

AXES = {"step": "step", "samples": "samples_seen", "tokens": "tokens_seen", "seconds": "perf/train_seconds"}
_ITS_OWN = ("run_id", "run_dir", "runs_dir", "logger")  # settings that differ between runs and tell nothing


@dataclass
class Run:
    """A run directory; `name` tells it from the others of the report."""

    path: Path
    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    lines: list[dict[str, Any]]
    drawn: list[Drawn] = field(default_factory=list)
    model: str = ""

    @property
    def family(self) -> str:
        return str(self.config.get("experiment", "")).partition("/")[0]

    @property
    def status(self) -> str:
        return run_directory.status_of(self.summary)

    def series(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of what is finite; of several values of one step the last."""
        return sorted({line["step"]: line[metric] for line in self.lines if _finite(line.get(metric))}.items())

    def metrics(self) -> list[str]:
        """Those with a finite value."""
        named = (name for line in self.lines for name, value in line.items() if name != "step" and _finite(value))
        return list(dict.fromkeys(named))


def open_runs(folders: list[Path]) -> list[Run]:
    """The runs in folders; a folder that is no run stands for the runs that lie in it.

    Raises:
        FileNotFoundError: a folder is no run and holds none.
    """
    paths: list[Path] = []
    for folder in folders:
        inside = [folder] if is_run(folder) else sorted(p for p in folder.glob("*") if is_run(p))
        if not inside:
            run_directory.load_config(folder)  # says what is wrong
        paths += [path for path in inside if path not in paths]
    return [_open(path, name) for path, name in zip(paths, names(paths), strict=True)]


def is_run(folder: Path) -> bool:
    return (folder / run_directory.RESOLVED).is_file()


def names(paths: list[Path]) -> list[str]:
    """The last parts of each path, as many as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts), default=1)):
        short = ["/".join(each[-count:]) for each in parts]
        if len(set(short)) == len(short):
            return short
    return [str(path) for path in paths]


def differences(runs: list[Run]) -> tuple[dict[str, list[str]], int]:
    """The settings in which configs differ, a value for each run, and how many are equal."""
    flat = [run_directory.flat(run.config) for run in runs]
    keys = sorted({key for each in flat for key in each})
    values = {key: [str(each.get(key, "-")) for each in flat] for key in keys if key.split(".")[0] not in _ITS_OWN}
    differing = {key: row for key, row in values.items() if len(set(row)) > 1}
    return differing, len(values) - len(differing)


def _open(path: Path, name: str) -> Run:
    config: Any = OmegaConf.to_container(run_directory.load_config(path), resolve=False)
    model = path / run_directory.MODEL
    return Run(
        path=path,
        name=name,
        config=config,
        summary=run_directory.read_summary(path) or {},
        lines=read(path / "metrics.jsonl"),
        drawn=drawn(path),
        model=model.read_text(encoding="utf-8") if model.is_file() else "",
    )


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
