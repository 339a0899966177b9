"""Which curves people want to see of a family, in sections: `conf/dashboard/<family>.yaml`, then `every.yaml`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from scaledl.config.folders import options


@dataclass(frozen=True)
class Panel:
    """A chart of some metrics."""

    title: str
    metrics: tuple[str, ...]
    log: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and the charts under it."""

    title: str
    panels: tuple[Panel, ...]


def families(folders: list[Path]) -> list[str]:
    """Every family that an experiment belongs to."""
    return sorted({name.partition("/")[0] for name in options("experiment", folders)})


def dashboard(family: str, folders: list[Path]) -> list[Section]:
    """The sections of a family: its own, or those of default.yaml, and those of every family.

    Raises:
        ValueError: a file is not of the form that default.yaml shows.
    """
    own = family if family in options("dashboard", folders) else "default"
    return [section for name in (own, "every") for section in _read(_file(name, folders))]


def together(dashboards: Iterable[list[Section]]) -> list[Section]:
    """The sections of several families, each once; charts of one title show the metrics of the first."""
    found: dict[str, dict[str, Panel]] = {}
    for sections in dashboards:
        for section in sections:
            panels = found.setdefault(section.title, {})
            for panel in section.panels:
                panels.setdefault(panel.title, panel)
    last = [title for title in ("Gradients", "Throughput") if title in found]
    order = [title for title in found if title not in last] + last
    return [Section(title, tuple(found[title].values())) for title in order]


def _file(name: str, folders: list[Path]) -> Path:
    return next(path for folder in folders if (path := folder / "dashboard" / f"{name}.yaml").is_file())


def _read(path: Path) -> list[Section]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return [
            Section(title, tuple(_panel(name, about) for name, about in panels.items()))
            for title, panels in content.items()
        ]
    except (AttributeError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no dashboard: it must map sections to charts, and a chart's title to its metrics, as in "
            "Quality: {Loss: [train/loss, val/loss]}"
        ) from error


def _panel(title: str, about: list[str] | dict) -> Panel:
    if isinstance(about, dict):
        return Panel(title, tuple(about["metrics"]), bool(about.get("log", False)))
    if not isinstance(about, list):
        raise TypeError
    return Panel(title, tuple(about))
