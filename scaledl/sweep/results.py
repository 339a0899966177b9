"""What a sweep has found: a file in its directory, whatever database its trials are kept in."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna import Study, create_study
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from scaledl import atomic
from scaledl.sweep.folder import RESULTS
from scaledl.sweep.search import latest
from scaledl.sweep.space import Space
from scaledl.sweep.storage import patiently

_STATUS = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass
class Result:
    """A trial; values of one that was pruned are those of its last validation; what is not finite is left out."""

    trial: int
    status: str
    params: dict[str, Any]
    values: list[float] | None
    validations: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    seconds: float | None = None


@dataclass
class Results:
    """
    Args:
        words: those of every trial.
        space: Optuna's distributions as JSON, by parameter.
    """

    sweep: str
    experiment: str
    objectives: dict[str, str]
    words: list[str]
    space: dict[str, str]
    trials: list[Result]

    def directions(self) -> list[str]:
        return directions(self.objectives)

    def study(self, trials: list[Result]) -> Study:
        """Those of the trials that have a value, for what Optuna computes of them."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = create_study(directions=self.directions())
        space = {name: json_to_distribution(text) for name, text in self.space.items()}
        for each in trials:
            if each.values and set(each.params) == set(space):
                study.add_trial(
                    create_trial(
                        values=each.values, params=each.params, distributions=space, user_attrs={"of": each.trial}
                    )
                )
        return study

    def completed(self) -> list[Result]:
        """Best first; of several objectives, those that no other is better than in all."""
        done = [each for each in self.trials if each.status == "completed"]
        if len(self.objectives) == 1:
            sign = 1 if self.directions() == ["minimize"] else -1
            return sorted(done, key=lambda each: sign * each.values[0])  # type: ignore[index]
        return sorted(self.front(), key=lambda each: each.values or [])

    def front(self) -> list[Result]:
        signs = [1 if direction == "minimize" else -1 for direction in self.directions()]
        done = [each for each in self.trials if each.status == "completed" and each.values]
        costs = {each.trial: [s * v for s, v in zip(signs, each.values or [], strict=True)] for each in done}
        return [
            each
            for each in done
            if not any(
                all(a <= b for a, b in zip(other, costs[each.trial], strict=True)) and other != costs[each.trial]
                for other in costs.values()
            )
        ]


def directions(objectives: dict[str, str]) -> list[str]:
    return [{"min": "minimize", "max": "maximize"}[mode] for mode in objectives.values()]


def collect(
    study: Study, sweep: str, experiment: str, objectives: dict[str, str], words: list[str], space: Space
) -> Results:
    trials = patiently(lambda: study.get_trials(deepcopy=False))
    every = [_result(place, trial) for place, trial in enumerate(latest(trials))]
    told = {name: distribution_to_json(distribution) for name, distribution in space.items()}
    return Results(sweep, experiment, objectives, words, told, every)


def write(results: Results, folder: Path) -> None:
    atomic.write_text(folder / RESULTS, json.dumps(asdict(results), indent=1, allow_nan=False) + "\n")


def read(folder: Path) -> Results:
    """
    Raises:
        FileNotFoundError: the folder holds no sweep with results.
    """
    if not (folder / RESULTS).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {RESULTS}; a sweep writes it in hydra.sweep.dir when a trial has ended"
        )
    told = json.loads((folder / RESULTS).read_text())
    return Results(**{**told, "trials": [Result(**each) for each in told["trials"]]})


def _result(place: int, trial: FrozenTrial) -> Result:
    error = trial.user_attrs.get("error")
    if trial.state == TrialState.FAIL and error is None:
        error = "its worker was lost"
    values = trial.values or [math.nan]
    return Result(
        place,
        _STATUS[trial.state],
        trial.params,
        list(values) if all(map(math.isfinite, values)) else None,
        {str(step): value for step, value in trial.intermediate_values.items() if math.isfinite(value)},
        error,
        trial.duration.total_seconds() if trial.duration else None,
    )
