"""Federated experiments reach their stated results by their own commands, and are evaluated like any other run."""

from pathlib import Path

import pytest

from tests.conftest import summary_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "floor", "picture"),
    [
        ("digits_iid", 0.95, None),
        ("digits_two_shards", 0.85, "clients.png"),
        ("digits_secure", 0.95, "attack.png"),
        ("digits_private", 0.85, None),
    ],
)
def test_an_experiment_reaches_its_floor(scaledl, tmp_path: Path, name: str, floor: float, picture: str | None) -> None:
    scaledl("train", f"experiment=federated/{name}", "run_id=a")
    run_dir = tmp_path / "runs" / "federated" / name / "a"
    summary = summary_of(run_dir)
    assert summary["metrics"]["test/acc"] >= floor
    assert summary["steps"] == 30
    assert f"{summary['metrics']['test/acc']:.4f}" in scaledl("evaluate", str(run_dir)).stdout
    assert picture is None or (run_dir / "plots" / picture).read_bytes().startswith(b"\x89PNG")
    assert name != "digits_private" or summary["metrics"]["privacy/epsilon"] == pytest.approx(3.18, abs=0.01)
