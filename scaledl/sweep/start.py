"""`scaledl train -m sweep=<name>`: check the space, let workers fill the places of a study, write what was found."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import distribution_to_json
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler

from scaledl import atomic, build, launch, run_directory, train
from scaledl.config import resolvers
from scaledl.config.folders import as_words
from scaledl.config.validate import ConfigError
from scaledl.distributed import group
from scaledl.processes import ending_with_parent
from scaledl.sweep import best, confirm, results, storage, tables
from scaledl.sweep.every import Every
from scaledl.sweep.launchers import Launcher
from scaledl.sweep.search import Search, open_study
from scaledl.sweep.settings import Asked, read
from scaledl.sweep.space import STORAGE, Space, corners, space_of, words_of
from scaledl.sweep.worker import Worker

SLOT = "SCALEDL_SWEEP_SLOT"  # environment of a worker that the first one of a machine has started
_FACTS = "scaledl"  # of the study: what must be the same for all its workers


@dataclass
class Sweep:
    """What every worker of a sweep knows."""

    asked: Asked
    space: Space
    words: list[str]  # of every trial
    config: DictConfig  # of its first point
    launcher: Launcher
    folder: Path
    objectives: dict[str, str]
    options: list[str]  # of the command line
    sampler: BaseSampler

    def pruning(self) -> list[str]:
        """Words that let a trial report and be ended."""
        if not self.asked.settings.pruner:
            return []
        flat = _flat("callbacks.pruning.pruner", self.asked.settings.pruner)
        target = "callbacks.pruning._target_=scaledl.callbacks.pruning.Pruning"
        return [target, "callbacks.pruning.monitor=${monitor}", *flat]


def search(words: list[str], folders: list[Path], allowed: list[str]) -> int:
    """Search until n_trials are finished; 0, 1 if none of them succeeded, or 128 + the signal that stopped it.

    Raises:
        ConfigError: settings, space or config are wrong; nothing was trained.
    """
    if group.world_size() > 1:
        raise ConfigError(["-m: a sweep is started once, not by torchrun; each of its trials is a launch of its own"])
    for category in (ExperimentalWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module="optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    slot = int(os.environ.get(SLOT, 0))
    found = _prepared(words, folders, allowed, check=slot == 0)
    found.folder.mkdir(parents=True, exist_ok=True)
    url = storage.url_of(found.asked.settings.storage, found.folder)
    study = _study(found, url)
    if slot == 0:
        _announce(found, study, url)
    code = _work(found, study, url, slot, words)
    if slot:
        return code
    told = _record(found, study)
    best.write(told, found.folder, folders, found.options)
    tables.show(told, found.folder)
    if code == 0 and found.asked.settings.seeds and told.completed():
        code = confirm.confirm(
            told, found.folder, found.launcher, found.options, found.config, found.asked.settings.seeds
        )
    return code or int(not told.completed())


def _record(found: Sweep, study: optuna.Study) -> results.Results:
    told = results.collect(study, found.asked.name, found.config.experiment, found.objectives, found.words, found.space)
    results.write(told, found.folder)
    return told


def settings_of(words: list[str], folders: list[Path], allowed: list[str]) -> str:
    """The settings of a search as YAML, without secrets, for `scaledl show -m`."""
    return _shown(_prepared(words, folders, allowed, check=True))


def _prepared(words: list[str], folders: list[Path], allowed: list[str], check: bool) -> Sweep:
    asked = read(words, folders, allowed)
    settings = asked.settings
    space, fixed = space_of([*(f"{key}={value}" for key, value in settings.params.items()), *asked.words])
    if not space:
        raise ConfigError([f"sweep={asked.name}: every parameter is fixed; leave one its range, or train without -m"])
    launcher = build.instantiate(settings.launcher)
    options = as_words(folders, allowed)
    sampler = build.instantiate(settings.sampler)
    if isinstance(sampler, Every):
        settings.n_trials = min(settings.n_trials, sampler.cover(space))
    found = Sweep(asked, space, fixed, None, launcher, Path(), dict(settings.objectives), options, sampler)
    with launch.as_on(launcher.nodes, launcher.ranks_of_a_node()):
        problems: list[str] = []
        for point in corners(space) if check else corners(space)[:1]:
            try:
                config = train.composed([*fixed, *words_of(point), *found.pruning()], folders, allowed)
                found.config = found.config or config
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        if check:
            train.checked(found.config.copy())
    name = asked.folder or Path(found.config.runs_dir) / found.config.experiment / f"sweep-{resolvers.run_id()}"
    found.folder = Path(name).absolute()
    found.objectives = found.objectives or {found.config.monitor: found.config.mode}
    if settings.pruner and list(found.objectives) != [found.config.monitor]:
        raise ConfigError(
            [
                f"hydra.sweeper.objectives={found.objectives}: the pruner looks at monitor={found.config.monitor}; "
                "set that one instead, or hydra.sweeper.pruner=null"
            ]
        )
    return found


def _study(found: Sweep, url: str) -> optuna.Study:
    """
    Raises:
        ConfigError: the study was begun by other words.
    """
    settings = found.asked.settings
    name = settings.study_name or f"{found.config.experiment}/{found.folder.name}"
    pruner = build.instantiate(settings.pruner) if settings.pruner else optuna.pruners.NopPruner()
    study = open_study(url, name, found.sampler, pruner, results.directions(found.objectives))
    facts = {
        "words": " ".join(found.words),
        "objectives": dict(found.objectives),
        **{f"space of {key}": json.loads(distribution_to_json(each)) for key, each in found.space.items()},
    }
    before = study.user_attrs.get(_FACTS)
    if before is None and any(found.folder.glob("trial_*/config.yaml")):
        raise ConfigError(
            [
                f"{found.folder} holds trials, but the study {name} in its database holds none: bring the database "
                "back, or choose another hydra.sweep.dir"
            ]
        )
    if before is None:
        study.set_user_attr(_FACTS, facts)
    elif before != facts:
        changed = [
            f"{key}: was {before.get(key)}, now {facts.get(key)}"
            for key in dict.fromkeys([*before, *facts])
            if before.get(key) != facts.get(key)
        ]
        raise ConfigError([f"{found.folder} holds another sweep; choose another hydra.sweep.dir", *changed])
    return study


def _work(found: Sweep, study: optuna.Study, url: str, slot: int, words: list[str]) -> int:
    settings = found.asked.settings
    others = _others(found, words) if slot == 0 else []
    worker = Worker(
        search=Search(
            study, found.space, settings.n_trials, settings.max_retries, settings.lost_after_seconds, say=_say
        ),
        launcher=found.launcher,
        slot=slot,
        sweep_dir=found.folder,
        words=["train", *found.options, *found.words, *found.pruning()],
        objectives=found.objectives,
        storage=url,
        max_failures=settings.max_failures,
        heartbeat=settings.lost_after_seconds / 6,
        record=lambda: _record(found, study),
        say=_say,
    )
    try:
        code = worker.run()
    except BaseException:
        for other in others:
            other.terminate()
        raise
    for other in others:
        if code:
            other.terminate()
        other.wait()
    return code


def _others(found: Sweep, words: list[str]) -> list[subprocess.Popen[bytes]]:
    """The other workers of this machine."""
    given = [word for word in words if not word.startswith(("hydra.sweep.dir=", f"{STORAGE}="))]
    command = [
        sys.executable,
        "-m",
        "scaledl",
        "train",
        "-m",
        *found.options,
        *given,
        f"hydra.sweep.dir={found.folder}",
    ]
    own = dict(os.environ)
    if found.asked.settings.storage:  # not among the words, which every user of the machine can read
        own["SCALEDL_SWEEP_STORAGE"] = found.asked.settings.storage
    return [
        subprocess.Popen(ending_with_parent(command), env=own | {SLOT: str(slot)})
        for slot in range(1, found.launcher.jobs())
    ]


def _announce(found: Sweep, study: optuna.Study, url: str) -> None:
    atomic.write_text(found.folder / "sweep.yaml", _shown(found))
    finished = sum(trial.state.is_finished() for trial in results.latest(study.get_trials(deepcopy=False)))
    kept = "" if url.startswith("sqlite") else f", trials in {storage.without_secrets(url)}"
    _say(f"sweep {found.asked.name} in {found.folder}{kept}")
    _say(
        f"{finished} of {found.asked.settings.n_trials} trials are finished; {found.launcher.jobs()} at a time; "
        f"stopped or killed, the same command with hydra.sweep.dir={found.folder} goes on"
    )


def _shown(found: Sweep) -> str:
    settings: Any = OmegaConf.to_container(found.asked.settings, resolve=True)
    if settings["storage"]:
        settings["storage"] = storage.without_secrets(settings["storage"])
    shown = {"sweep": found.asked.name, "words": found.asked.words, **settings}
    return OmegaConf.to_yaml(OmegaConf.create(shown))


def _flat(path: str, node: Any) -> list[str]:
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return [
        f"{key}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"
        for key, value in run_directory.flat(plain, path).items()
    ]


def _say(message: str) -> None:
    print(message, flush=True)
