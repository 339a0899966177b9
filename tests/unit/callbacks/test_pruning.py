"""A trial reports to the study, also after its worker was lost and another one waits for the same launch."""

import json
import os
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution

from scaledl.callbacks.pruning import Pruning
from scaledl.sweep.search import Search, open_study
from scaledl.sweep.storage import TRIAL


@pytest.fixture
def search(tmp_path: Path) -> Search:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = open_study(url, "s", optuna.samplers.RandomSampler(0), optuna.pruners.NopPruner(), ["minimize"])
    return Search(study, {"x": FloatDistribution(0, 1)}, 2, say=lambda message: None)


@pytest.fixture
def begun(search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    attempt = search.ask()
    assert attempt is not None
    told = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "study": "s", "id": attempt.trial._trial_id}
    monkeypatch.setenv(TRIAL, json.dumps(told))
    return attempt


def test_a_launch_that_outlived_its_worker_reports_to_the_next_attempt(search: Search, begun) -> None:
    pruning = Pruning("val/loss", optuna.pruners.ThresholdPruner(upper=1.0))
    assert not pruning._behind(0.5, 1)
    for validation in (2, 3):
        search.give_back(begun)
        assert not pruning._behind(0.5, validation)  # also while nobody has taken it again
        begun = search.ask()
    assert search.places()[0].intermediate_values == {1: 0.5, 2: 0.5, 3: 0.5}
    assert pruning._behind(2.0, 4)
    search.pruned(begun)
    assert not pruning._behind(2.0, 5)  # there is nobody to tell


def test_without_its_storage_a_trial_goes_on(begun, monkeypatch) -> None:
    told = json.loads(os.environ[TRIAL])
    monkeypatch.setenv(TRIAL, json.dumps(told | {"storage": "sqlite:////nowhere/study.db"}))
    monkeypatch.setattr("scaledl.sweep.storage.time.monotonic", iter(range(0, 10_000, 10)).__next__)
    with pytest.warns(UserWarning, match="the sweep's storage does not answer, so this trial goes on"):
        assert not Pruning("val/loss", optuna.pruners.NopPruner())._behind(0.5, 1)
