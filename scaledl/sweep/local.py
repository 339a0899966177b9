"""A sweep on this machine: one trial after the other, each in a process of its own."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scaledl import processes, run_directory
from scaledl.config.folders import as_words
from scaledl.config.validate import ConfigError
from scaledl.distributed import group
from scaledl.sweep.grid import Trial, trials


def sweep(words: list[str], folders: list[Path], allowed: list[str]) -> int:
    """Train every trial; 0, or 1 if one failed, or the code of one that a signal stopped, and with it the sweep.

    A failed trial does not end the sweep; one completed before is not repeated.

    Raises:
        ConfigError: a trial's config is wrong; nothing was trained.
    """
    if group.world_size() > 1:
        raise ConfigError(["-m: a sweep is started once, not by torchrun; each of its trials is a launch of its own"])
    every = trials(words, folders, allowed)
    console = Console(soft_wrap=True, highlight=False)
    failed = 0
    for number, trial in enumerate(every):
        console.print(f"trial {number + 1} of {len(every)}: {' '.join(trial.own)}", style="bold")
        code = processes.run([sys.executable, "-m", "scaledl", "train", *as_words(folders, allowed), *trial.words])
        if code > 128:
            return code
        failed += code != 0
    console.print(table_of(every))
    return min(1, failed)


def table_of(every: list[Trial]) -> Table:
    """What each trial came to."""
    monitor = every[0].config.monitor
    table = Table("trial", "words", "status", monitor, title=str(every[0].run_dir.parent), title_justify="left")
    for trial in every:
        summary = run_directory.read_summary(trial.run_dir) or {"status": "failed", "best": None}
        best = f"{summary['best']['value']:.4f}" if summary["best"] else ""
        table.add_row(trial.run_dir.name, " ".join(trial.own), summary["status"], best)
    return table
