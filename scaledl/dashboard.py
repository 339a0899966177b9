"""`scaledl dashboard`: the curves of each family as Weights & Biases workspaces, shown, kept in a file, or pushed."""

import json
from pathlib import Path

from scaledl import atomic
from scaledl.config.resolvers import wandb_offline
from scaledl.reporting.dashboard import Section, dashboard, families
from scaledl.reporting.workspace import spec, workspace


def show(chosen: list[str], folders: list[Path]) -> None:
    """Print sections, charts and metrics of each family."""
    for family in _known(chosen, folders):
        print(family)
        for section in dashboard(family, folders):
            print(f"  {section.title}")
            for panel in section.panels:
                print(f"    {panel.title}: {', '.join(panel.metrics)}{' (log)' * panel.log}")


def write(chosen: list[str], folders: list[Path], project: str, output: Path) -> None:
    """The specifications that would be pushed, as JSON, by family."""
    made = {name: spec(workspace(name, sections, project)) for name, sections in _chosen(chosen, folders).items()}
    atomic.write_text(output, json.dumps(made, indent=1) + "\n")


def push(chosen: list[str], folders: list[Path], project: str, entity: str | None) -> list[str]:
    """Make a saved view of each in the account's project; returns their addresses.

    Raises:
        ValueError: there is no account.
    """
    if wandb_offline():
        raise ValueError(
            "there is no Weights & Biases account to push to: `wandb login` (or WANDB_API_KEY) first; without "
            "--push, the dashboards are shown, and `scaledl report RUN` draws them without an account"
        )
    import wandb

    entity = entity or wandb.Api().default_entity
    return [workspace(*each, project, entity).save().url for each in _chosen(chosen, folders).items()]


def _chosen(chosen: list[str], folders: list[Path]) -> dict[str, list[Section]]:
    return {family: dashboard(family, folders) for family in _known(chosen, folders)}


def _known(chosen: list[str], folders: list[Path]) -> list[str]:
    known = families(folders)
    for family in chosen:
        if family not in known:
            raise ValueError(f"there is no family {family!r}; there are: {', '.join(known)}")
    return chosen or known
