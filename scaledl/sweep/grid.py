"""Hydra's multirun words, such as `optimizer.lr=0.01,0.02 seed=range(3)`, as a list of trials."""

import itertools
from dataclasses import dataclass
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig

from scaledl.config import resolvers
from scaledl.config.validate import ConfigError
from scaledl.sweep.space import parse
from scaledl.train import composed

_DIR = "hydra.sweep.dir"


@dataclass
class Trial:
    """One combination of the values: the words of its training, those that tell it from the others, and its config."""

    words: list[str]
    own: list[str]
    config: DictConfig

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir)


def combinations(words: list[str]) -> list[tuple[list[str], list[str]]]:
    """(all words, those with one of several values) of each trial, the last word's values changing fastest.

    Raises:
        ConfigError: a word is not of Hydra's grammar, or its values cannot be counted.
    """
    choices: list[list[str]] = []
    for word in words:
        try:
            override = parse(word)
            several = override.is_sweep_override()
            choices.append(
                [f"{override.get_key_element()}={v}" for v in override.sweep_string_iterator()] if several else [word]
            )
        except HydraException as error:
            raise ConfigError([f"{word}: a grid has no such values ({str(error).splitlines()[0]})"]) from error
    swept = [index for index, choice in enumerate(choices) if len(choice) > 1]
    return [(list(chosen), [chosen[index] for index in swept]) for chosen in itertools.product(*choices)]


def trials(words: list[str], folders: list[Path], allowed: list[str], only: int | None = None) -> list[Trial]:
    """Every trial of a sweep, its config valid, in `trial_0000` and on of hydra.sweep.dir.

    Args:
        only: the number of the one trial that is wanted.

    Raises:
        ConfigError: a trial's config is wrong, or there is no such trial.
    """
    given = [word.partition("=")[2] for word in words if word.startswith(f"{_DIR}=")]
    every = combinations([word for word in words if not word.startswith(f"{_DIR}=")])
    if only is not None and not 0 <= only < len(every):
        raise ConfigError([f"--trial {only}: there are {len(every)} trials, 0 to {len(every) - 1}"])
    folder = Path(given[-1]) if given else _folder(every[0][0], folders, allowed)
    found = []
    for number, (own_words, own) in enumerate(every):
        if only is None or number == only:
            name = f"trial_{number:04d}"
            chosen = [*own_words, f"run_id={folder.name}-{name}", f"run_dir={folder / name}"]
            found.append(Trial(chosen, own, composed(chosen, folders, allowed)))
    return found


def _folder(words: list[str], folders: list[Path], allowed: list[str]) -> Path:
    config = composed(words, folders, allowed)
    return Path(config.runs_dir) / config.experiment / f"sweep-{resolvers.run_id()}"
