"""What can be trained, read from the comments at the head of each experiment file."""

from dataclasses import dataclass
from pathlib import Path

from scaledl.config.folders import options

FIELDS = ("run", "needs", "time", "result")


@dataclass
class Experiment:
    """An experiment's header: a sentence, then `run:`, `needs:`, `time:` and `result:`."""

    name: str
    idea: str
    run: str = ""
    needs: str = ""
    time: str = ""
    result: str = ""


def read_experiment(name: str, path: Path) -> Experiment:
    found, idea = dict.fromkeys(FIELDS, ""), []
    field = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        word, colon, rest = text.partition(":")
        if colon and word in FIELDS:
            field = word
            found[field] = rest.strip()
        elif field:
            found[field] = f"{found[field]} {text}".strip()
        elif not text.startswith("@package"):
            idea.append(text)
    return Experiment(name, " ".join(idea), **found)


def all_experiments(folders: list[Path]) -> list[Experiment]:
    """Every experiment, the user's in front of ours where both have a name."""
    found = []
    for name in options("experiment", folders):
        path = next(path for folder in folders if (path := folder / "experiment" / f"{name}.yaml").is_file())
        found.append(read_experiment(name, path))
    return found


def print_experiments(folders: list[Path], family: str | None) -> None:
    """A table of them; of one family where it is given.

    Raises:
        ValueError: there is no such family.
    """
    from rich.console import Console
    from rich.table import Table

    experiments = all_experiments(folders)
    families = sorted({experiment.name.partition("/")[0] for experiment in experiments})
    if family is not None and family not in families:
        raise ValueError(f"there is no family {family!r}; there are: {', '.join(families)}")
    table = Table(title="scaledl train experiment=...", title_justify="left")
    for column in ("experiment", "idea", "needs", "time", "result"):
        table.add_column(column, overflow="fold")
    for experiment in experiments:
        if family in (None, experiment.name.partition("/")[0]):
            table.add_row(experiment.name, experiment.idea, experiment.needs, experiment.time, experiment.result)
    Console().print(table)
