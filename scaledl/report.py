"""`scaledl report`: runs, or a sweep, as one page of HTML that opens anywhere."""

import os
from pathlib import Path

from scaledl import atomic
from scaledl.reporting.dashboard import dashboard, together
from scaledl.reporting.page import build
from scaledl.reporting.runs import open_runs
from scaledl.sweep.folder import is_sweep


def report(paths: list[Path], output: Path | None, folders: list[Path]) -> Path:
    """Writes the page of runs, of the runs in a folder, or of a sweep; returns where.

    Args:
        output: null: `report.html` in the run's or sweep's directory; of several, in the folder that holds all.

    Raises:
        FileNotFoundError: a path is neither, or there is no folder for the page.
        ValueError: a sweep is given together with others.
    """
    if output and not output.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {output.parent} for --output {output}; make it first")
    if sweeps := [path for path in paths if is_sweep(path)]:
        if len(paths) > 1:
            raise ValueError(f"{sweeps[0]} is a sweep, which has a page of its own: give it alone")
        from scaledl.sweep.report import write_report

        return write_report(paths[0], output)
    runs = open_runs(paths)
    page = output or _home([run.path for run in runs]) / "report.html"
    atomic.write_text(page, build(runs, together(dashboard(run.family, folders) for run in runs)))
    return page


def _home(runs: list[Path]) -> Path:
    """The run's directory, or the innermost folder that holds all of several."""
    if len(runs) == 1:
        return runs[0]
    alike = runs if not any(run.is_absolute() for run in runs) else [run.resolve() for run in runs]
    return Path(os.path.commonpath(alike))
