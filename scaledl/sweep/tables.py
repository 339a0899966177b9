"""What a person sees when a sweep ends."""

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scaledl.sweep import best
from scaledl.sweep.results import Results

ROWS = 10


def show(results: Results, folder: Path) -> None:
    console = Console(soft_wrap=True, highlight=False)
    counts = Counter(each.status for each in results.trials)
    title = f"{folder}: " + ", ".join(f"{count} {status}" for status, count in counts.items())
    table = Table("trial", *results.objectives, *results.space, title=title, title_justify="left")
    for each in results.completed()[:ROWS]:
        numbers = [f"{value:.4g}" for value in each.values or []]
        table.add_row(f"{each.trial:04d}", *numbers, *(shown(each.params.get(name)) for name in results.space))
    console.print(table)
    for each in results.trials:
        if each.status == "failed":
            console.print(f"trial {each.trial} failed: {each.error}", markup=False)
    for command in best.commands(folder)[:1]:
        console.print(f"best config: {command}", markup=False)


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
