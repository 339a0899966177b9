"""Comparisons: of the words that were asked for, and of what was measured."""

import json
from pathlib import Path

import pytest

from scripts import compare
from scripts.compare import Run, draw, trained


def test_a_run_with_other_words_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def train(words: list[str]) -> None:
        asked.append(words[:-1])
        run_dir = Path(words[-1].removeprefix("run_dir="))
        run_dir.mkdir(parents=True)
        (run_dir / "summary.json").write_text(json.dumps({"status": "completed", "metrics": {"val/loss": len(asked)}}))
        (run_dir / "metrics.jsonl").write_text("")

    monkeypatch.setattr(compare, "_scaledl", train)
    found = [
        trained(["optimizer=adamw", f"optimizer.lr={lr}"], tmp_path / "seed_0").value("val/loss") for lr in (1, 2, 1)
    ]
    assert found == [1, 2, 1]
    assert len(asked) == 2


def test_a_metric_without_a_curve_is_drawn_empty(tmp_path: Path) -> None:
    log = [{"step": step, "train/loss": 1 / step} for step in (1, 2)]
    draw({"a": [Run(log, {})]}, ["train/loss", "val/acc"], "one", tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 5_000
