"""Each experiment's step, and what it draws, with weights in bf16 and no autocast, as bf16-true and DeepSpeed do it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from scaledl import build
from scaledl.config.folders import CONF, options
from scaledl.distributed.noise import Noise
from scaledl.train import composed

FAMILIES = ("autoencoder", "vae", "gan", "diffusion", "energy", "ssl")


@pytest.mark.parametrize("name", [n for n in options("experiment", [CONF]) if n.split("/")[0] in FAMILIES])
def test_a_step_and_samples_in_bf16(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCALEDL_CACHE", str(tmp_path))
    config = composed([f"experiment={name}", "run_id=test"], [CONF], [])
    data = build.data(config)
    build.settle_steps(config, len(data.split("train")))
    task = build.task(config, build.model(config))
    task.configure_model()
    task.to(torch.bfloat16)
    batch = data.split("train").__getitems__(np.arange(4))
    x = batch["x"].to(torch.bfloat16)
    for training in (True, False):
        task.train(training)
        task.noise = Noise(0, torch.arange(4))
        loss = task.objective(batch | {"x": x})["loss"]
        assert loss.isfinite()
    if hasattr(task, "samples"):
        assert task.samples(Noise(0, torch.arange(3)), torch.arange(3)).shape == (3, *x.shape[1:])
    if hasattr(task, "reconstruct"):
        _, drawn = task.reconstruct(batch["x"], Noise(0, torch.arange(4)))  # from fp32, as callbacks ask
        assert drawn.shape == x.shape
