"""Each family reaches its stated result by its experiment's own command, and draws its picture."""

from pathlib import Path

import pytest

from tests.conftest import summary_of

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("experiment", "metric", "floor"),
    [
        ("perceptron/blobs", "test/acc", 0.95),
        ("perceptron/digits", "test/acc", 0.92),
        ("mlp/circles", "test/acc", 0.99),
        ("mlp/xor", "test/acc", 0.99),
        ("mlp/digits", "test/acc", 0.96),
        ("cnn/digits", "test/acc", 0.98),
        ("resnet/digits", "test/acc", 0.985),
        ("vit/digits", "test/acc", 0.96),
        ("kan/digits", "test/acc", 0.955),
        ("text/embedding_bag", "test/acc", 0.85),
        ("word2vec/analogies", "test/analogies", 0.95),
        ("energy/rbm_digits", "test/probe_acc", 0.92),
        ("ssl/simclr_digits", "test/probe_acc", 0.98),
        ("rl/cartpole_ppo", "test/return", 475),
    ],
)
def test_a_family_reaches_its_floor(scaledl, tmp_path: Path, experiment: str, metric: str, floor: float) -> None:
    scaledl("train", f"experiment={experiment}", "run_id=a")
    run_dir = tmp_path / "runs" / experiment / "a"
    assert summary_of(run_dir)["metrics"][metric] >= floor
    draws_its_pictures(run_dir)


@pytest.mark.parametrize(
    ("experiment", "words", "metric", "ceiling"),
    [
        ("kan/formula", [], "test/rmse", 2e-2),
        ("recurrent/gru_text", [], "val/loss", 1.5),
        ("vae/digits", [], "test/neg_elbo", 25),
        # Parts of the way; docs/results.md has the ends.
        ("gan/digits", ["trainer.max_steps=1500"], "val/frechet", 20),
        ("diffusion/digits", ["trainer.max_steps=500", "trainer.val_check_interval=500"], "val/frechet", 25),
    ],
)
def test_a_family_comes_below_its_ceiling(
    scaledl, tmp_path: Path, experiment: str, words: list[str], metric: str, ceiling: float
) -> None:
    scaledl("train", f"experiment={experiment}", *words, "run_id=a")
    run_dir = tmp_path / "runs" / experiment / "a"
    metrics = summary_of(run_dir)["metrics"]
    assert metrics[metric] <= ceiling
    assert metrics.get("val/coverage", 1) == 1  # all classes are drawn
    assert metrics.get("val/conditional_acc", 1) >= 0.9  # and those that were asked for


def draws_its_pictures(run_dir: Path) -> None:
    pictures = list((run_dir / "plots").glob("*.png"))
    assert pictures
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert all(picture.stat().st_size > 5_000 for picture in pictures)


def test_a_run_given_in_epochs_is_evaluated_and_goes_on(scaledl, tmp_path: Path) -> None:
    words = ["experiment=mlp/circles", "trainer.max_steps=-1", "trainer.val_check_interval=10", "run_id=a"]
    scaledl("train", *words, "trainer.max_epochs=1")
    run_dir = Path("runs/mlp/circles/a")
    one_epoch = summary_of(tmp_path / run_dir)
    assert one_epoch["steps"] == 19  # 1,200 samples in batches of 64
    assert f"{one_epoch['metrics']['test/acc']:.4f}" in scaledl("evaluate", str(run_dir)).stdout
    scaledl("resume", str(run_dir), "trainer.max_epochs=2")
    assert summary_of(tmp_path / run_dir)["steps"] == 38
    assert "completed before" in scaledl("train", *words, "trainer.max_epochs=2").stdout
