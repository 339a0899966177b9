"""Curves of runs as data for the page's script: which charts there are, and the points of each."""

import json
from typing import Any

from scaledl.reporting.dashboard import Panel, Section
from scaledl.reporting.runs import AXES, Run

MOST_POINTS = 1500  # of a curve; of more, the smallest and largest of each stretch are kept
_NO_CURVES = ("test/", "baseline/")  # measured once
_LOG_RATIO = 100  # between the largest and smallest value, from which on a chart begins with a logarithmic axis


def sections_with_data(sections: list[Section], runs: list[Run]) -> tuple[list[Section], Section]:
    """The dashboard's charts that some run has values for, and one more section with what no chart of it shows."""
    logged = {name for run in runs for name in run.metrics()}
    kept = []
    for section in sections:
        panels = [
            Panel(panel.title, tuple(metric for metric in panel.metrics if metric in logged), panel.log)
            for panel in section.panels
        ]
        if panels := [panel for panel in panels if panel.metrics]:
            kept.append(Section(section.title, tuple(panels)))
    shown = {metric for section in sections for panel in section.panels for metric in panel.metrics}
    others = sorted(name for name in logged - shown - set(AXES.values()) if not name.startswith(_NO_CURVES))
    by_name: dict[str, list[str]] = {}
    for name in others:
        by_name.setdefault(name.removeprefix("train/").removeprefix("val/"), []).append(name)
    return kept, Section("More", tuple(Panel(name, tuple(metrics)) for name, metrics in by_name.items()))


def data(sections: list[Section], runs: list[Run]) -> str:
    """JSON that may stand inside a script element."""
    charts = {
        place(section, panel): {"log": panel.log or (panel.metrics != ("lr",) and _wide(series)), "series": series}
        for section in sections
        for panel in section.panels
        if (series := _series(panel, runs))
    }
    drawn = {each["run"] for chart in charts.values() for each in chart["series"]}
    axes = {axis: [_axis(run, name) for run in runs] for axis, name in AXES.items() if axis != "step"}
    content = {
        "runs": [run.name for run in runs],
        "axes": {axis: of_runs for axis, of_runs in axes.items() if drawn and all(of_runs[run] for run in drawn)},
        "charts": charts,
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def place(section: Section, panel: Panel) -> str:
    """What a chart is called in the data and on the page."""
    return f"{section.title}: {panel.title}"


def thinned(points: list[tuple[int, float]], most: int = MOST_POINTS) -> list[tuple[int, float]]:
    if len(points) <= most:
        return points
    stretch = -(-2 * len(points) // most)
    kept = []
    for first in range(0, len(points), stretch):
        part = points[first : first + stretch]
        low, high = min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])
        kept += sorted({low, high})
    return kept


def _series(panel: Panel, runs: list[Run]) -> list[dict[str, Any]]:
    found = []
    for number, run in enumerate(runs):
        for metric in panel.metrics:
            if points := thinned(run.series(metric)):
                steps, values = zip(*points, strict=True)
                found.append({"run": number, "metric": metric, "steps": steps, "values": values})
    return found


def _wide(series: list[dict[str, Any]]) -> bool:
    values = [value for each in series for value in each["values"]]
    return min(values, default=0) > 0 and max(values) > _LOG_RATIO * min(values)


def _axis(run: Run, name: str) -> list[list[float]]:
    """[steps, values] of a quantity that grows with the steps."""
    points = thinned(run.series(name))
    return [list(each) for each in zip(*points, strict=True)]
