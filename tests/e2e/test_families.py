"""Each family reaches its stated result by its experiment's own command, and draws its picture."""

from pathlib import Path

import pytest

from tests.conftest import summary_of

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("experiment", "floor"),
    [
        ("perceptron/blobs", 0.95),
        ("perceptron/digits", 0.92),
        ("mlp/circles", 0.99),
        ("mlp/xor", 0.99),
        ("mlp/digits", 0.96),
        ("cnn/digits", 0.98),
    ],
)
def test_a_family_reaches_its_floor(scaledl, tmp_path: Path, experiment: str, floor: float) -> None:
    scaledl("train", f"experiment={experiment}", "run_id=a")
    run_dir = tmp_path / "runs" / experiment / "a"
    assert summary_of(run_dir)["metrics"]["test/acc"] >= floor
    pictures = list((run_dir / "plots").glob("*.png"))
    assert pictures
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert all(picture.stat().st_size > 5_000 for picture in pictures)
