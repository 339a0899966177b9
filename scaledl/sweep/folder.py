"""What the directory of a sweep looks like, for those who only look: nothing of Optuna."""

from pathlib import Path

from scaledl import run_directory

RESULTS = "results.json"  # of a search; of a grid each trial tells its own


def trials_in(folder: Path) -> list[Path]:
    """The run directories of trials that have a config."""
    return sorted(path.parent for path in folder.glob(f"trial_[0-9]*/{run_directory.RESOLVED}"))


def is_sweep(folder: Path) -> bool:
    return (folder / RESULTS).is_file() or bool(trials_in(folder))
