"""Sparse weights and the step at which a run ends early are those of one process, whoever holds the weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scaledl.distributed import storage
from tests.conftest import summary_of
from tests.distributed.launch import launch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

FOLDER = Path("runs/mlp/sparse_digits")
# A strong penalty, so that a few steps make zeros; only the first validation improves by so much.
RUN = ["train", "experiment=mlp/sparse_digits", "~callbacks.predictions", "callbacks.l1.strength=0.05"]
RUN += ["callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=100", "trainer.val_check_interval=4"]


def test_every_strategy_has_the_zeros_of_one_process_and_ends_with_it(
    scaledl: Callable, environment: dict[str, str], tmp_path: Path
) -> None:
    scaledl(*RUN, "run_id=single")
    for strategy, more in {
        "ddp": [],
        "fsdp": [],
        "deepspeed_2": [],
        "deepspeed_3": ["strategy.persistence_threshold=0"],
    }.items():
        own = [f"strategy={strategy}", f"run_id={strategy}", *more]
        launch(2, *RUN, *own, folder=tmp_path, environment=environment)

    def of(strategy: str) -> tuple[dict[str, torch.Tensor], float]:
        run_dir = tmp_path / FOLDER / strategy
        summary = summary_of(run_dir)
        assert (summary["status"], summary["steps"]) == ("completed", 8), strategy
        assert summary["metrics"]["early_stopping/waited"] == 1
        return storage.load_whole(run_dir / "checkpoints" / "step_00000008", "weights/"), summary["metrics"][
            "val/zeros"
        ]

    expected, zeros = of("single")
    matrices = torch.cat([weight.flatten() for weight in expected.values() if weight.dim() == 2])
    assert zeros == pytest.approx((matrices == 0).double().mean().item())
    assert 0.1 < zeros < 0.9
    for strategy in ("ddp", "fsdp", "deepspeed_2", "deepspeed_3"):
        found, zeros_found = of(strategy)
        assert zeros_found == pytest.approx(zeros, abs=2 / len(matrices)), strategy  # one may be nearly zero
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, msg=strategy)
