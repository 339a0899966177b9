import json
from pathlib import Path

import pytest

from scaledl.reporting.runs import differences, names, open_runs


def make(folder: Path, lr: float = 0.1, log: str = "", **more: object) -> Path:
    folder.mkdir(parents=True)
    optimizer = {"lr": lr, "betas": [0.9, 0.95]} | more
    config = {"experiment": "mlp/x", "run_id": folder.name, "seed": 0, "optimizer": optimizer}
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text(log)
    return folder


def test_a_folder_stands_for_the_runs_in_it(tmp_path: Path) -> None:
    make(tmp_path / "mlp" / "a")
    make(tmp_path / "mlp" / "b")
    (tmp_path / "mlp" / "no_run").mkdir()
    runs = open_runs([tmp_path / "mlp", tmp_path / "mlp" / "a"])
    assert [run.name for run in runs] == ["a", "b"]
    assert {run.status for run in runs} == {"running or killed"}
    with pytest.raises(FileNotFoundError, match="no_run is no run directory"):
        open_runs([tmp_path / "mlp" / "no_run"])


def test_names_are_as_long_as_they_must_be() -> None:
    paths = [Path("/r/mlp/a"), Path("/r/cnn/a"), Path("/r/cnn/b")]
    assert names(paths) == ["mlp/a", "cnn/a", "cnn/b"]
    assert names(paths[1:]) == ["a", "b"]


def test_a_series_is_what_is_finite_the_last_of_a_step_and_whole_lines(tmp_path: Path) -> None:
    log = '{"step": 1, "a": 2.0}\n{"step": 2, "a": null, "c": null, "d": NaN, "e": -Infinity}\n{"step": 2, "a": NaN}\n'
    log += '{"step": 3, "a": 1.0, "b": 5}\n{"step": 3, "a": 0.5}\n{"st'
    (run,) = open_runs([make(tmp_path / "a", log=log)])
    assert run.series("a") == [(1, 2.0), (3, 0.5)]
    assert run.metrics() == ["a", "b"]


def test_only_settings_that_differ_are_told_and_names_of_runs_are_none(tmp_path: Path) -> None:
    runs = open_runs([make(tmp_path / "a"), make(tmp_path / "b", lr=0.2, momentum=0.9)])
    differing, equal = differences(runs)
    assert differing == {"optimizer.lr": ["0.1", "0.2"], "optimizer.momentum": ["-", "0.9"]}
    assert equal == 3  # experiment, seed, betas
