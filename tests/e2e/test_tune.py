"""`scaledl find-lr` and `find-batch`, as typed; what they leave, and that a run after them is the same run."""

import json
from pathlib import Path

import pytest

from tests.conftest import metrics_of

pytestmark = pytest.mark.e2e
DIGITS = ["experiment=mlp/digits", "trainer.max_steps=20", "trainer.val_check_interval=10"]
RUNS = Path("runs/mlp/digits")


def test_a_run_is_the_same_after_both_finders(scaledl, tmp_path: Path) -> None:
    scaledl("train", *DIGITS, "run_id=plain")
    found = scaledl("find-lr", *DIGITS, "run_id=a", "--steps", "60")
    assert "suggestion" in found.stdout
    result = json.loads((tmp_path / RUNS / "a" / "lr_finder.json").read_text())
    assert result["rates"][0] == pytest.approx(1e-6)
    assert 1e-4 < result["suggestion"] < 0.1

    scaledl("find-batch", *DIGITS, "run_id=a", "--steps", "2", "data.global_batch_size=4", "data.micro_batch_size=4")
    result = json.loads((tmp_path / RUNS / "a" / "batch_finder.json").read_text())
    assert [each["size"] for each in result["tried"]] == [1, 2, 4]
    assert all(each["samples_per_second"] > 0 and each["memory"] > 2**20 for each in result["tried"])
    assert result["suggestion"] in (1, 2, 4)

    left = {path.relative_to(tmp_path / RUNS / "a").as_posix() for path in (tmp_path / RUNS / "a").rglob("*")}
    pictures = {"plots", "plots/lr_finder.png", "plots/batch_finder.png"}
    assert left == pictures | {"lr_finder.json", "batch_finder.json"}
    scaledl("train", *DIGITS, "run_id=a")
    assert metrics_of(tmp_path / RUNS / "a") == metrics_of(tmp_path / RUNS / "plain")


def test_mistakes_are_told(scaledl) -> None:
    assert "must be rising" in scaledl("find-lr", *DIGITS, "--min-lr", "1", "--max-lr", "0.1", code=2).stderr
    assert "did you mean" in scaledl("find-batch", *DIGITS, "optimizer.lrr=1", code=2).stderr
