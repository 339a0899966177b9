"""What a sweep leaves: outcome of a trial, best config, front, interval, page."""

import json
import math
import shlex
from html import escape
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from optuna import create_study
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json, json_to_distribution
from optuna.trial import TrialState

from scaledl import run_directory
from scaledl.config.compose import compose
from scaledl.config.folders import CONF, options
from scaledl.sweep import best, confirm, grid_results, report, results
from scaledl.sweep.outcome import outcome_of
from scaledl.sweep.results import Result, Results

SPACE = {
    "optimizer.lr": distribution_to_json(FloatDistribution(1e-4, 1e-1, log=True)),
    "optimizer": distribution_to_json(CategoricalDistribution(["adam", "sgd"])),
}


def found(objectives: dict[str, str], values: list[list[float] | None]) -> Results:
    trials = [
        Result(
            number,
            "completed" if value else "failed",
            {"optimizer.lr": 0.001 * (number + 1), "optimizer": ["adam", "sgd"][number % 2]},
            value,
            {"1": 1.0, "2": 0.5},
            None if value else "CUDA out of memory <b>",
        )
        for number, value in enumerate(values)
    ]
    words = ["experiment=mlp/digits", "model.hidden_dims=[8,8]", "~callbacks.curves", "data.nudged=true"]
    return Results("tpe", "mlp/digits", objectives, words, SPACE, trials)


def test_best_is_an_experiment_that_composes_to_the_trials_config(tmp_path: Path) -> None:
    told = found({"val/acc": "max"}, [[0.5], None, [0.75], [0.25]])
    file = tmp_path / "experiment" / "mlp" / "best.yaml"
    assert best.write(told, tmp_path, [CONF], []) == [file]
    config, problems = compose(["experiment=mlp/best"], [tmp_path, CONF])
    trial, more = compose([*told.words, "optimizer.lr=0.003", "optimizer=adam"], [CONF])
    assert not problems + more
    for group in ("model", "data", "optimizer", "trainer", "task", "strategy", "scheduler"):
        assert config[group] == trial[group], group
    assert config.optimizer.lr == 0.003
    assert config.callbacks.curves is None
    assert "result: val/acc 0.75" in file.read_text()
    assert options("experiment", [tmp_path]) == ["mlp/best"]


def test_best_is_trained_with_the_folders_and_packages_of_its_sweep(scaledl, tmp_path: Path) -> None:
    mine = tmp_path / "my conf"
    (mine / "model" / "part").mkdir(parents=True)
    (tmp_path / "mine.py").write_text("from scaledl.models.mlp import MLP\n")
    text = (CONF / "model" / "mlp.yaml").read_text().replace("scaledl.models.mlp.MLP", "mine.MLP")
    (mine / "model" / "own.yaml").write_text("defaults: [_self_, part: a]\n" + text)
    for name, activation in (("a", "gelu"), ("b", "silu")):
        (mine / "model" / "part" / f"{name}.yaml").write_text(f"# @package model\nactivation: {activation}\n")
    (mine / "experiment" / "mine").mkdir(parents=True)
    base = "# @package _global_\ndefaults:\n  - /experiment/mlp/digits\n  - override /model: own\n  - _self_\n"
    (mine / "experiment" / "mine" / "wide.yaml").write_text(base)
    told = found({"val/acc": "max"}, [[0.5]])
    told.experiment, told.words = "mine/wide", ["experiment=mine/wide", "model/part=b"]
    best.write(told, tmp_path / "sweep", [mine, CONF], ["--config-dir", str(mine), "--allow", "mine"])
    (command,) = best.commands(tmp_path / "sweep")
    program, verb, *words = shlex.split(command)
    assert (program, verb, words[-1]) == ("scaledl", "train", "experiment=mine/best")
    shown = yaml.safe_load(scaledl("show", *words).stdout)
    assert shown["model"]["_target_"] == "mine.MLP"
    assert shown["model"]["activation"] == "silu"
    assert shown["optimizer"]["lr"] == 0.001
    results.write(told, tmp_path / "sweep")
    assert escape(command) in report.write_report(tmp_path / "sweep").read_text()


def test_the_front_holds_what_no_other_dominates(tmp_path: Path) -> None:
    told = found({"val/acc": "max", "num_parameters": "min"}, [[0.5, 10], [0.6, 10], [0.7, 20], [0.4, 30], None])
    assert [each.trial for each in told.front()] == [1, 2]
    written = best.write(told, tmp_path, [CONF], [])
    assert [path.name for path in written] == ["pareto_0001.yaml", "pareto_0002.yaml"]
    assert yaml.safe_load(written[1].read_text())["optimizer"]["lr"] == 0.003


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    told = found({"val/acc": "max"}, [[0.5], None])
    results.write(told, tmp_path)
    assert results.read(tmp_path) == told
    with pytest.raises(FileNotFoundError, match="holds no"):
        results.read(tmp_path / "elsewhere")


def test_the_interval_is_students() -> None:
    compared = confirm.compare("val/loss", "min", [1, 2, 3], winner=[1.0, 1.0, 1.0], default=[2.0, 3.0, 4.0])
    assert compared.better == pytest.approx(2.0)
    half = 4.302653 * 1.0 / 3**0.5  # t of 2 degrees of freedom, at 0.975
    assert (compared.low, compared.high) == pytest.approx((2 - half, 2 + half))
    assert "not told apart" in compared.words()
    assert "better" in confirm.compare("val/acc", "max", [1, 2, 3], [0.9, 0.91, 0.92], [0.5, 0.5, 0.5]).words()


@pytest.mark.parametrize("objectives", [{"val/acc": "max"}, {"val/acc": "max", "num_parameters": "min"}])
def test_the_page_needs_nothing_else(tmp_path: Path, objectives: dict[str, str]) -> None:
    values = [[number / 10, 100.0 - number][: len(objectives)] for number in range(8)]
    told = found(objectives, [*values, None])
    results.write(told, tmp_path)
    page = report.write_report(tmp_path).read_text()
    for heading in ("Best configs", "Importance", "Parallel coordinates", "Failed"):
        assert heading in page
    assert ("Pareto front" in page) == (len(objectives) == 2)
    assert "CUDA out of memory &lt;b&gt;" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_importance_finds_the_parameter_that_matters() -> None:
    told = found({"val/acc": "max"}, [[float(number % 2)] for number in range(16)])
    shares = report.importance(told)
    assert shares["optimizer"] > 0.9


def test_the_outcome_of_a_trial(tmp_path: Path) -> None:
    objectives = ["val/acc"]
    (tmp_path / "log.txt").write_text("noise\nscaledl: an earlier attempt\n")
    begins = (tmp_path / "log.txt").stat().st_size
    with open(tmp_path / "log.txt", "a") as log:
        log.write("Traceback of torchrun\nscaledl: rank 1: no memory\n[E] more of torchrun\n")
    assert outcome_of(tmp_path, objectives, begins).message == "scaledl: rank 1: no memory"
    summary = {"status": "completed", "best": {"metric": "val/acc", "value": 0.5, "step": 1}, "metrics": {}}
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"num_parameters": 7}))
    assert outcome_of(tmp_path, [*objectives, "num_parameters"]).values == [0.5, 7.0]
    wrong = outcome_of(tmp_path, ["val/los"])
    assert wrong.status == "failed"
    assert "no finite val/los" in (wrong.message or "")
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"status": "pruned"}))
    assert outcome_of(tmp_path, objectives).status == "pruned"


def test_what_is_not_finite_is_no_result(tmp_path: Path) -> None:
    study = create_study()
    for number in range(12):
        trial = study.ask({name: json_to_distribution(text) for name, text in SPACE.items()})
        trial.report(math.inf if number % 2 else 0.5, 1)
        study.tell(trial, None if number % 2 else 1.0, state=TrialState.PRUNED if number % 2 else TrialState.COMPLETE)
    told = results.collect(study, "tpe", "mlp/x", {"val/loss": "min"}, [], study.trials[0].distributions)
    assert [(each.values, each.validations) for each in told.trials[:2]] == [([1.0], {"1": 0.5}), (None, {})]
    results.write(told, tmp_path)
    assert "How it went" in report.write_report(tmp_path).read_text()


def trial_of(sweep: Path, number: int, lr: float, **summary: Any) -> Path:
    """A trial of a grid as training leaves it: waiting, begun, or with a summary."""
    trial = sweep / f"trial_{number:04d}"
    trial.mkdir(parents=True)
    words = [f"optimizer.lr={lr}", f"run_dir={trial}", f"run_id={sweep.name}-{trial.name}", "logger=csv"]
    config, problems = compose(["experiment=mlp/circles", *words, f"seed={7 * number}"], [CONF])
    assert not problems
    run_directory.write_config(trial, OmegaConf.to_yaml(config), config)
    if summary:
        (trial / "summary.json").write_text(json.dumps({"metrics": {}, "best": None} | summary))
        (trial / "model.txt").touch()
    return trial


def test_a_grid_is_read_from_its_trials(tmp_path: Path) -> None:
    for number, value in enumerate([0.75, 0.5]):
        done = {"status": "completed", "best": {"metric": "val/loss", "value": value, "step": 1}}
        trial_of(tmp_path, number, lr=0.2 / (1 + number), **done)
    trial_of(tmp_path, 2, 0.3, status="failed")
    trial_of(tmp_path, 3, 0.3, status="preempted")
    (trial_of(tmp_path, 4, 0.3) / "model.txt").touch()
    trial_of(tmp_path, 5, 0.3)
    told = grid_results.read(tmp_path)
    assert list(told.space) == ["optimizer.lr", "seed"]  # no path of a logger, and not what follows from the seed
    assert [each.status for each in told.trials] == [
        *("completed", "completed", "failed", "preempted", "running or killed", "waiting")
    ]
    assert told.completed()[0].params == {"optimizer.lr": "0.1", "seed": "7"}
    page = report.write_report(tmp_path).read_text()
    assert "2 completed, 1 failed, 1 preempted, 1 running or killed, 1 waiting" in page
    assert page.count("it has left no log") == 1
    with pytest.raises(FileNotFoundError, match="is no sweep"):
        report.write_report(tmp_path / "trial_0000")


@pytest.mark.parametrize("summary", [{}, {"status": "failed"}, {"status": "completed"}])
def test_a_single_trial_has_a_page(tmp_path: Path, summary: dict[str, Any]) -> None:
    best = {"metric": "val/loss", "value": 0.5, "step": 1}
    trial_of(tmp_path / "grid", 0, 0.1, **({"best": best} | summary if summary else {}))
    page = report.write_report(tmp_path / "grid").read_text()
    assert ("Best configs" in page) == (summary.get("status") == "completed")
    assert "Parallel coordinates" not in page


def test_a_search_with_one_finished_trial_has_a_page(tmp_path: Path) -> None:
    results.write(found({"val/acc": "max"}, [[0.5], None, None]), tmp_path)
    page = report.write_report(tmp_path).read_text()
    assert "Best configs" in page
    assert "Each parameter" not in page
