"""Every combination once: by workers that take turns, after one was lost, and when all are done."""

from pathlib import Path

import optuna
import pytest

from scaledl.config.folders import CONF
from scaledl.config.validate import ConfigError
from scaledl.sweep.every import Every
from scaledl.sweep.search import Search, open_study
from scaledl.sweep.space import space_of
from scaledl.sweep.start import settings_of

WORDS = ["b=range(1,4)", "a=x,y", "c=range(0.5,1.1,0.5)"]


def worker(words: list[str], folder: Path) -> Search:
    space, _ = space_of(words)
    sampler = Every()
    count = sampler.cover(space)
    url = f"sqlite:///{folder / 'study.db'}"
    study = open_study(url, "s", sampler, optuna.pruners.NopPruner(), ["minimize"])
    return Search(study, space, count, say=lambda message: None)


def test_workers_share_the_combinations(tmp_path: Path) -> None:
    first, second = worker(WORDS, tmp_path), worker(WORDS[::-1], tmp_path)
    running = [search.ask() for search in (first, second, second, first)]
    second.give_back(running[1])
    again = first.ask()
    assert (again.place, again.trial.params) == (running[1].place, running[1].trial.params)
    for attempt in (running[0], running[2], again):
        second.complete(attempt, [0.5])
    first.fail(running[3], "no memory")
    while attempt := second.ask():
        second.complete(attempt, [0.5])
    last = worker(WORDS, tmp_path)
    assert last.over()
    assert last.ask() is None
    points = [tuple(trial.params[name] for name in "abc") for trial in last.places()]
    assert points == [(a, b, c) for a in ("x", "y") for b in (1, 2, 3) for c in (0.5, 1.0)]


def test_what_has_no_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr: an interval has no end of values"):
        settings_of(["sweep=every", "experiment=mlp/digits", "optimizer.lr=interval(0.1,0.2)"], [CONF], [])


@pytest.mark.parametrize(("more", "count"), [([], 4), (["hydra.sweeper.n_trials=3"], 3)])
def test_there_are_as_many_trials_as_combinations(more: list[str], count: int) -> None:
    words = ["sweep=every", "experiment=mlp/digits", "optimizer.lr=0.1,0.2", "seed=0,1", *more]
    assert f"n_trials: {count}" in settings_of(words, [CONF], [])
