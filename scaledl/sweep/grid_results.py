"""What a grid sweep has found, read from the run directories of its trials."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, distribution_to_json

from scaledl import run_directory
from scaledl.sweep.folder import trials_in
from scaledl.sweep.outcome import Outcome, outcome_of
from scaledl.sweep.results import Result, Results

_VOLATILE = ("run_id", "run_dir")


def read(folder: Path) -> Results:
    """
    Raises:
        FileNotFoundError: there is no trial in it.
    """
    trials = trials_in(folder)
    if not trials:
        raise FileNotFoundError(f"{folder} is no sweep: it holds neither results.json nor trial_0000/config.yaml")
    configs = [_linked(trial) for trial in trials]
    every = dict.fromkeys(key for config in configs for key in config if key not in _VOLATILE)
    choices = {key: list(dict.fromkeys(str(config.get(key)) for config in configs)) for key in every}
    choices = {key: values for key, values in choices.items() if len(values) > 1}
    space = {key: distribution_to_json(CategoricalDistribution(values)) for key, values in choices.items()}
    first = run_directory.load_config(trials[0])
    objectives = {first.monitor: first.mode}
    found = []
    for trial, config in zip(trials, configs, strict=True):
        outcome = _outcome(trial, objectives)
        params = {key: str(config.get(key)) for key in space}
        number = int(trial.name.removeprefix("trial_"))
        found.append(Result(number, outcome.status, params, outcome.values, {}, outcome.message))
    return Results("grid", first.experiment, objectives, [], space, found)


def _linked(trial: Path) -> dict[str, Any]:
    """Its settings with their links, flat: what follows from another, such as a logger's path, is no choice."""
    config = run_directory.load_config(trial, run_directory.LINKED)
    return run_directory.flat(OmegaConf.to_container(config, resolve=False))


def _outcome(trial: Path, objectives: Iterable[str]) -> Outcome:
    summary = run_directory.read_summary(trial)
    if summary is not None and summary["status"] != "preempted":
        return outcome_of(trial, objectives)
    begun = (trial / run_directory.MODEL).is_file()
    return Outcome(run_directory.status_of(summary) if begun else "waiting")
