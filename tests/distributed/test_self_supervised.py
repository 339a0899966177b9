"""Negatives of all ranks, BYOL's target and the probe: those of one process, whoever holds the weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scaledl.distributed import storage
from tests.conftest import summary_of
from tests.distributed.launch import launch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SMALL = ["model.backbone.stages=[[8,3,1,2],[8,3,1,2]]", "data.global_batch_size=16", "trainer.max_steps=4"]
SMALL += ["trainer.val_check_interval=2", "callbacks.probe.num_train_samples=100", "callbacks.probe.method=pca"]
# The gradient of a bias before a batch norm is rounding alone, of which Adam's own eps would make whole steps.
SMALL += ["optimizer.eps=1e-3"]


@pytest.mark.parametrize(
    ("experiment", "strategies"),
    [
        ("simclr_digits", {"ddp": [], "fsdp": [], "deepspeed_2": []}),
        (
            "byol_digits",
            {
                "ddp": [],
                "fsdp": ["strategy.reshard_after_forward=false"],  # gathered parameters must not outlive the target
                "deepspeed_3": ["strategy.persistence_threshold=0"],
            },
        ),
    ],
)
def test_ranks_have_the_weights_and_the_features_of_one_process(
    scaledl: Callable, environment: dict[str, str], tmp_path: Path, experiment: str, strategies: dict[str, list[str]]
) -> None:
    run = ["train", f"experiment=ssl/{experiment}", *SMALL]
    scaledl(*run, "run_id=single")
    for strategy, more in strategies.items():
        own = [f"strategy={strategy}", f"run_id={strategy}", *more]
        launch(2, *run, *own, folder=tmp_path, environment=environment, seconds=300)

    def of(strategy: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        run_dir = tmp_path / "runs/ssl" / experiment / strategy
        metrics = summary_of(run_dir)["metrics"]
        chosen = {name: metrics[name] for name in ("test/probe_acc", "test/knn_acc", "val/knn_acc")}
        folder, kinds = run_dir / "checkpoints" / "step_00000004", ("weights/", "ema/")
        return {k + n: v for k in kinds for n, v in storage.load_whole(folder, k).items()}, chosen

    weights, metrics = of("single")
    for strategy in strategies:
        found, measured = of(strategy)
        torch.testing.assert_close(
            found, weights, atol=2e-6, rtol=0, msg=lambda said, strategy=strategy: f"{strategy}: {said}"
        )
        assert measured == pytest.approx(metrics, abs=0.01), strategy  # a sample may stand on a border


def test_micro_batches_that_do_not_see_one_another_are_refused(scaledl: Callable) -> None:
    done = scaledl("train", "experiment=ssl/simclr_digits", "data.micro_batch_size=64", code=1)
    assert (
        "SimCLR compares all samples of a global batch, but each rank takes its 256 in 4 micro-batches" in done.stderr
    )
