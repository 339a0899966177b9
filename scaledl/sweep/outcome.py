"""What became of a trial, read from its run directory."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaledl import run_directory

LAST_LINES, LONGEST = 5, 600


@dataclass
class Outcome:
    status: str  # completed | pruned | failed | preempted
    values: list[float] | None = None
    message: str | None = None


def outcome_of(run_dir: Path, objectives: Iterable[str], log_from: int = 0) -> Outcome:
    """
    Args:
        objectives: the metrics that are wanted of it.
        log_from: where in its log.txt the latest attempt begins.
    """
    summary = run_directory.read_summary(run_dir)
    status = summary["status"] if summary else "failed"
    if status in ("pruned", "preempted"):
        return Outcome(status)
    if summary is None or status != "completed":
        return Outcome("failed", message=last_words(run_dir / "log.txt", log_from))
    values = []
    for metric in objectives:
        value = _number(summary, metric)
        if value is None or not math.isfinite(value):
            known = ", ".join([*summary["metrics"], "num_parameters", "train_seconds"])
            return Outcome("failed", message=f"its summary.json has no finite {metric}; there are: {known}")
        values.append(value)
    return Outcome("completed", values)


def _number(summary: dict[str, Any], metric: str) -> float | None:
    best = summary["best"]
    if best and best["metric"] == metric:
        return best["value"]
    found = summary["metrics"].get(metric, summary.get(metric))
    return float(found) if isinstance(found, (int, float)) else None


def last_words(log: Path, start: int = 0) -> str:
    """What a launch said last: our own message where there is one, else its last lines."""
    if not log.is_file():
        return "it has left no log"
    with open(log, "rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if "scaledl: " in line and "Warning" not in line]
    said = "\n".join(dict.fromkeys(ours)) if ours else "\n".join(lines[-LAST_LINES:])
    return said[-LONGEST:] or "it has said nothing"
