"""The winner against the default, with launches that take no time."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scaledl.sweep.confirm import compare, confirm, read
from scaledl.sweep.results import Result, Results

CONFIG = OmegaConf.create({"seed": 7})


class Ended:
    def wait(self, seconds: float) -> int:
        return 0


class Launches:
    """Writes the summary of a run whose loss is x + seed / 1000 (x of the default: 0.5)."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, words: list[str], folder: Path, slot: int, environment: dict[str, str]) -> Ended:
        told = dict(word.split("=", 1) for word in words if "=" in word)
        value = float(told.get("x", 0.5)) + int(told["seed"]) / 1000
        best = {"metric": "val/loss", "value": value, "step": 1}
        (folder / "summary.json").write_text(json.dumps({"status": "completed", "best": best, "metrics": {}}))
        self.started.append(folder.name)
        return Ended()


def results(*xs: float) -> Results:
    trials = [Result(place, "completed", {"x": x}, [x]) for place, x in enumerate(xs)]
    return Results("random", "mlp/digits", {"val/loss": "min"}, ["experiment=mlp/digits"], {}, trials)


def test_a_sweep_that_goes_on_compares_its_new_winner(tmp_path: Path) -> None:
    launches = Launches()
    assert confirm(results(0.3, 0.4), tmp_path, launches, [], CONFIG, 3) == 0  # type: ignore[arg-type]
    first = read(tmp_path)
    assert first is not None
    assert first.better == pytest.approx(0.2)
    assert confirm(results(0.3, 0.4), tmp_path, launches, [], CONFIG, 3) == 0  # type: ignore[arg-type]
    assert len(launches.started) == 6  # nothing is trained twice
    assert confirm(results(0.3, 0.4, 0.1), tmp_path, launches, [], CONFIG, 3) == 0  # type: ignore[arg-type]
    second = read(tmp_path)
    assert second is not None
    assert second.better == pytest.approx(0.4)
    assert second.seeds == [8, 9, 10]
    assert launches.started[6:] == [f"trial_0002-seed-{seed}" for seed in second.seeds]


def test_the_interval_is_students() -> None:
    found = compare("val/acc", "max", [1, 2, 3], [0.9, 0.8, 0.85], [0.7, 0.7, 0.7])
    assert found.better == pytest.approx(0.15)
    assert found.low == pytest.approx(0.15 - 4.302653 * 0.05 / 3**0.5)  # t of 2 degrees of freedom, two-sided 95 %
    assert "better by 0.15" in found.words()
    assert found.words().endswith(": better")
    assert compare("val/acc", "min", [1, 2, 3], [0.9, 0.8, 0.85], [0.7, 0.7, 0.7]).words().endswith(": worse")
    assert compare("val/acc", "max", [1, 2], [0.9, 0.6], [0.7, 0.7]).words().endswith(": not told apart")
