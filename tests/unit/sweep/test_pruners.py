"""The pruners of conf/sweep, asked by the callback as a trial asks them; the trials' losses are formulas."""

import json
from pathlib import Path
from statistics import median

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from scaledl import build
from scaledl.callbacks.pruning import Pruning
from scaledl.config.folders import CONF
from scaledl.sweep.search import Search, open_study
from scaledl.sweep.settings import read
from scaledl.sweep.storage import TRIAL

HYPERBAND = ["sweep=tpe_hyperband", "hydra.sweeper.pruner.max_resource=9"]


def loss(x: float, validation: int) -> float:
    """Curves that never cross: a smaller x is better from the first validation on."""
    return x + 1 / validation


def searched(
    words: list[str], n_trials: int, validations: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[FrozenTrial]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = read(words, [CONF], []).settings
    url = f"sqlite:///{folder / 'study.db'}"
    pruner = build.instantiate(settings.pruner)
    study = open_study(url, "s", optuna.samplers.RandomSampler(seed=0), pruner, ["minimize"])
    search = Search(study, {"x": FloatDistribution(0, 1)}, n_trials)
    while attempt := search.ask():
        monkeypatch.setenv(TRIAL, json.dumps({"storage": url, "study": "s", "id": attempt.trial._trial_id}))
        callback = Pruning("val/loss", pruner)
        values = [loss(attempt.trial.params["x"], validation) for validation in range(1, validations + 1)]
        for validation, value in enumerate(values, 1):
            callback.judge({"val/loss": value}, validation, step=validation, max_steps=validations)
            if callback.outcome:
                break
        search.pruned(attempt) if callback.outcome else search.complete(attempt, [values[-1]])
    return search.places()


@pytest.mark.filterwarnings("ignore:step .*pruned")
def test_the_median_ends_a_trial_at_its_second_validation(tmp_path: Path, monkeypatch) -> None:
    trials = searched(["sweep=tpe_median"], 14, 4, tmp_path, monkeypatch)
    whole: list[float] = []
    for trial in trials:
        behind = len(whole) >= 5 and trial.params["x"] > median(whole)
        assert trial.state == (TrialState.PRUNED if behind else TrialState.COMPLETE)
        assert list(trial.intermediate_values) == list(range(1, (2 if behind else 4) + 1))
        whole += [] if behind else [trial.params["x"]]
    assert len(whole) < len(trials)


@pytest.mark.filterwarnings("ignore:step .*pruned")
def test_hyperband_ends_trials_at_the_rungs_of_their_brackets(tmp_path: Path, monkeypatch) -> None:
    trials = searched(HYPERBAND, 24, 9, tmp_path, monkeypatch)
    pruner = build.instantiate(read(HYPERBAND, [CONF], []).settings.pruner)
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'study.db'}", pruner=pruner)
    pruner.prune(study, trials[0])  # from when on it has brackets
    ended: set[int] = set()
    for bracket in range(3):
        members = [trial for trial in trials if pruner._get_bracket_id(study, trial) == bracket]
        best = min(members, key=lambda trial: trial.params["x"])
        assert best.state == TrialState.COMPLETE
        steps = {trial.last_step for trial in members if trial.state == TrialState.PRUNED}
        assert steps <= {1, 3} - set(range(3**bracket))
        ended |= steps
    assert ended == {1, 3}
    assert {trial.last_step for trial in trials if trial.state == TrialState.COMPLETE} == {9}
