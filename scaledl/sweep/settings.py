"""How a sweep searches: a file of conf/sweep, changed by the words `hydra.sweeper.…` and `hydra.launcher.…`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from scaledl.config.compose import choose
from scaledl.config.folders import options
from scaledl.config.validate import ALLOWED, ConfigError, did_you_mean, validate
from scaledl.sweep.space import parse

Node = dict[str, Any]
_SWEEPER, _LAUNCHER, _DIR = "hydra.sweeper.", "hydra.launcher.", "hydra.sweep.dir"
_MAY_NAME = (*ALLOWED, "optuna.samplers", *(f"scaledl.sweep.{name}" for name in ("launchers", "slurm", "every")))


@dataclass
class Settings:
    """Every key of a file in conf/sweep; conf/sweep/random.yaml holds the defaults and says what each does."""

    sampler: Node
    pruner: Node | None
    n_trials: int
    params: dict[str, str]
    objectives: dict[str, str]
    storage: str | None
    study_name: str | None
    max_retries: int
    max_failures: int
    lost_after_seconds: float
    seeds: int
    launcher: Node


@dataclass
class Asked:
    """What a person's words ask for: how to search, where, and the words of the runs."""

    name: str
    settings: DictConfig
    folder: str | None
    words: list[str]


def read(words: list[str], folders: list[Path], allowed: list[str]) -> Asked:
    """
    Raises:
        ConfigError: every setting that is wrong.
    """
    name, launcher, folder = "", None, None
    own, of_runs, problems = [], [], []
    for word in words:
        key = word.partition("=")[0]
        if key == "sweep":
            name = str(parse(word).value())
        elif key == "hydra/launcher":
            launcher = str(parse(word).value())
        elif key == _DIR:
            folder = str(parse(word).value())
        elif key.startswith((_SWEEPER, _LAUNCHER)):
            own.append(parse(word))
        elif key.startswith("hydra"):
            problems.append(
                f"{word}: a sweep has hydra.sweep.dir, hydra.sweeper.*, hydra/launcher and hydra.launcher.*"
            )
        else:
            of_runs.append(word)
    for group, choice in (("sweep", name), ("launcher", launcher)):
        known = options(group, folders)
        if choice is not None and choice not in known:
            hint = did_you_mean(choice, known)
            problems.append(f"{group}={choice}: there is no such {group}{hint} (there are: {', '.join(known)})")
    if problems:
        raise ConfigError(problems)
    lines = [f"launcher@sweep.launcher={launcher}"] if launcher else []
    settings = choose("sweep", name, folders, lines)
    OmegaConf.set_struct(settings, False)
    for override in own:
        place = override.key_or_group.removeprefix(_SWEEPER)
        place = place.replace(_LAUNCHER, "launcher.", 1)
        OmegaConf.update(settings, place, override.value(), merge=False)
    problems = validate(settings, Settings, {}, (*_MAY_NAME, *allowed)) or _broken_rules(settings)
    if problems:
        raise ConfigError(
            [f"hydra.sweeper.{problem}".replace(_SWEEPER + "launcher.", _LAUNCHER) for problem in problems]
        )
    return Asked(name, settings, folder, of_runs)


def _broken_rules(settings: DictConfig) -> list[str]:
    least = {"n_trials": 1, "max_retries": 0, "max_failures": 1, "lost_after_seconds": 1, "seeds": 0}
    problems = [f"{key}={settings[key]}: at least {low}" for key, low in least.items() if settings[key] < low]
    for metric, mode in settings.objectives.items():
        if mode not in ("min", "max"):
            problems.append(f"objectives.{metric}: {mode} is neither min nor max")
    if len(settings.objectives) > 1 and settings.pruner:
        problems.append("pruner: several objectives cannot be pruned; set hydra.sweeper.pruner=null")
    if settings.seeds == 1:
        problems.append("seeds=1: one seed has no interval; give 0, or 2 and more")
    if len(settings.objectives) > 1 and settings.seeds:
        problems.append(f"seeds={settings.seeds}: of several objectives there is no one winner; set it to 0")
    return problems
