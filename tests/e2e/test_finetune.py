"""A run begins with the weights of another."""

from pathlib import Path

import pytest

from tests.conftest import metrics_of, summary_of
from tests.distributed.launch import launch

pytestmark = pytest.mark.e2e
RUN = ["experiment=mlp/circles", "trainer.val_check_interval=1"]


def test_init_from_takes_weights_of_equal_name_and_shape(scaledl, environment, tmp_path: Path) -> None:
    scaledl("train", *RUN, "trainer.max_steps=40", "run_id=first", "callbacks.ema._target_=scaledl.callbacks.ema.EMA")
    first = tmp_path / "runs/mlp/circles/first"
    still = ["train", *RUN, f"init_from={first}", "trainer.max_steps=1", "optimizer.lr=0.0"]
    said = scaledl(*still, "run_id=alone").stdout
    assert "tensors begin as in" in said
    best = summary_of(first)["best"]["value"]
    assert summary_of(tmp_path / "runs/mlp/circles/alone")["metrics"]["val/loss"] == pytest.approx(best, rel=1e-6)

    launch(2, *still, "run_id=spread", "strategy=fsdp", folder=tmp_path, environment=environment)
    spread = metrics_of(tmp_path / "runs/mlp/circles/spread")
    assert [line["val/loss"] for line in spread if "val/loss" in line] == [pytest.approx(best, rel=1e-6)]

    other = ["data.kind=blobs", "model.hidden_dims=[7]", "trainer.max_steps=1", "run_id=other"]
    assert "has no tensor whose name and shape" in scaledl("train", *RUN, f"init_from={first}", *other, code=1).stderr
    nowhere = scaledl("train", *RUN, "init_from=nowhere", "run_id=never", code=1).stderr
    assert "nowhere is no run directory" in nowhere
    assert not (tmp_path / "runs/mlp/circles/never").exists()
