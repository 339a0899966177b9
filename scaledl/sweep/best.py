"""The best config of a sweep as an experiment file that is ready to be trained."""

import shlex
from pathlib import Path
from typing import Any

import yaml

from scaledl import atomic
from scaledl.config.folders import is_group
from scaledl.sweep.results import Result, Results
from scaledl.sweep.space import parse, words_of

FOLDER = "experiment"  # so that the sweep's directory is a conf/ folder
_RUN = "# run:    "


def write(results: Results, folder: Path, folders: list[Path], options: list[str]) -> list[Path]:
    """`experiment/<family>/best.yaml`, or of several objectives a file for each trial of the Pareto front.

    Args:
        folders: of configs, the sweep's own.
        options: of the sweep's command line, which the file's needs as well.
    """
    home = folder / FOLDER / results.experiment.partition("/")[0]
    home.mkdir(parents=True, exist_ok=True)
    front = results.completed()
    one = len(results.objectives) == 1
    names = ["best"] if one and front else [f"pareto_{each.trial:04d}" for each in front]
    for old in home.glob("pareto_*.yaml"):
        if old.stem not in names:
            old.unlink()
    written = []
    for name, each in zip(names, front, strict=False):
        path = home / f"{name}.yaml"
        command = ["scaledl", "train", "--config-dir", str(folder), *options, f"experiment={home.name}/{name}"]
        atomic.write_text(path, experiment_of(results, each, folders, shlex.join(command)))
        written.append(path)
    return written


def commands(folder: Path) -> list[str]:
    """By which the files of a sweep's directory are trained."""
    files = sorted((folder / FOLDER).glob("*/*.yaml"))
    lines = [line for path in files for line in path.read_text().splitlines()]
    return [line.removeprefix(_RUN) for line in lines if line.startswith(_RUN)]


def experiment_of(results: Results, trial: Result, folders: list[Path], command: str) -> str:
    """An experiment that begins as the sweep's did and changes what the sweep and its trial have changed."""
    reached = ", ".join(f"{key} {value:.4g}" for key, value in zip(results.objectives, trial.values or [], strict=True))
    base, choices, settings = _sorted([*results.words, *words_of(trial.params)], folders)
    defaults: list[Any] = [*([f"/experiment/{base}"] if base else []), "_self_"]
    defaults += [{f"override /{group}": choice} for group, choice in choices.items()]
    count = sum(each.status in ("completed", "pruned") for each in results.trials)
    lines = [
        "# @package _global_",
        f"# Trial {trial.trial} of sweep={results.sweep}, the best of {count}.",
        f"{_RUN}{command}",
        "# needs:  what the sweep's experiment needs",
        f"# time:   {trial.seconds or 0:.0f} s as a trial",
        f"# result: {reached}",
    ]
    return "\n".join(lines) + "\n" + yaml.safe_dump({"defaults": defaults, **settings}, sort_keys=False)


def _sorted(words: list[str], folders: list[Path]) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
    """The experiment, choices of groups and nested settings that words ask for; what they take away becomes null."""
    base: str | None = None
    choices: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for word in words:
        override = parse(word)
        key = override.key_or_group
        if override.is_delete():
            _set(settings, key, None)
        elif key == "experiment":
            base = str(override.value())
        elif is_group(key, folders) and isinstance(override.value(), (str, type(None))):
            choices[key] = override.value()
        else:
            _set(settings, key, _plain(override.value()))
    return base, choices, settings


def _set(settings: dict[str, Any], key: str, value: object) -> None:
    *parents, last = key.replace("/", ".").split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
    settings[last] = value


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if isinstance(value, (int, float, bool, type(None))) else str(getattr(value, "text", value))
