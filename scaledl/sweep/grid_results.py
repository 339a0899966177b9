"""What a grid sweep has found, read from the run directories of its trials."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, distribution_to_json

from scaledl import run_directory
from scaledl.sweep.outcome import outcome_of
from scaledl.sweep.results import Result, Results

_VOLATILE = ("run_id", "run_dir")


def read(folder: Path) -> Results:
    """
    Raises:
        FileNotFoundError: there is no trial in it.
    """
    trials = sorted(path.parent for path in folder.glob("trial_[0-9]*/config.yaml"))
    if not trials:
        raise FileNotFoundError(f"{folder} is no sweep: it holds neither results.json nor trial_0000/config.yaml")
    configs = [_flat(OmegaConf.to_container(run_directory.load_config(trial)), "") for trial in trials]
    keys = [
        key
        for key in dict.fromkeys(key for config in configs for key in config)
        if key not in _VOLATILE and len({str(config.get(key)) for config in configs}) > 1
    ]
    keys = [key for key in keys if not (key.endswith(".seed") and "seed" in keys)]
    space = {
        key: distribution_to_json(CategoricalDistribution(sorted({str(config.get(key)) for config in configs})))
        for key in keys
    }
    first = configs[0]
    objectives = {first["monitor"]: first["mode"]}
    found = []
    for trial, config in zip(trials, configs, strict=True):
        outcome = outcome_of(trial, objectives)
        params = {key: str(config.get(key)) for key in keys}
        number = int(trial.name.removeprefix("trial_"))
        found.append(Result(number, outcome.status, params, outcome.values, {}, outcome.message))
    return Results("grid", first["experiment"], objectives, [], space, found)


def _flat(node: Any, path: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        return {path: node}
    return {
        name: value for key, each in node.items() for name, value in _flat(each, f"{path}.{key}".lstrip(".")).items()
    }
