import csv
from pathlib import Path

import pytest

from scaledl.loggers.csv import CSV


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.csv"


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_metric_that_appears_later_becomes_a_column(path: Path) -> None:
    logger = CSV(str(path))
    logger.log_metrics({"train/loss": 0.5}, step=1)
    logger.log_metrics({"train/loss": float("nan"), "lr": 0.1}, step=2)
    logger.log_metrics({"val/loss": 0.25}, step=2)
    assert path.read_text() == "step,train/loss,lr,val/loss\n1,0.5,,\n2,,0.1,\n2,,,0.25\n"


def test_an_attempt_goes_on_behind_its_step_and_drops_a_torn_row(path: Path) -> None:
    path.write_text("step,a\n10,1.0\n20,2.0\n30,3.0\n40,4.")
    logger = CSV(str(path))
    logger.begin(20, {})
    logger.log_metrics({"a": 7.0, "b": 8.0}, step=30)
    assert [(row["step"], row["a"], row["b"]) for row in rows(path)] == [
        ("10", "1.0", ""),
        ("20", "2.0", ""),
        ("30", "7.0", "8.0"),
    ]


def test_a_new_run_begins_without_a_file(path: Path) -> None:
    CSV(str(path)).begin(0, {})
    assert not path.exists()
