"""Clients spread over ranks train the weights of one rank, bit for bit, and a killed run goes on at its last round."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scaledl import checkpoint
from scaledl.loggers import jsonl
from tests.distributed.launch import launch, started

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

FOLDER = Path("runs/federated/digits_secure")
# Masks, lost clients, noise and dropout: all that is random.
RUN = ["experiment=federated/digits_secure", "model.hidden_dims=[16]", "model.dropout=0.1", "trainer.max_steps=4"]
RUN += ["data.global_batch_size=100", "federation.num_clients=7", "federation.local_epochs=1"]
RUN += ["federation/privacy=gaussian", "federation.privacy.noise_multiplier=0.01"]


def weights_of(run_dir: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_model_weights(checkpoint.latest(run_dir))


def assert_equal(run_dir: Path, other: Path) -> None:
    one, two = weights_of(run_dir), weights_of(other)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_two_ranks_train_the_weights_of_one(scaledl: Callable, environment: dict[str, str], tmp_path: Path) -> None:
    scaledl("train", *RUN, "run_id=one")
    launch(2, "train", *RUN, "run_id=two", "strategy=ddp", folder=tmp_path, environment=environment)
    assert_equal(tmp_path / FOLDER / "one", tmp_path / FOLDER / "two")
    assert any(line.get("lost") for line in jsonl.read(tmp_path / FOLDER / "two" / "metrics.jsonl"))


def test_a_killed_run_goes_on_at_its_last_round(scaledl: Callable, environment: dict[str, str], tmp_path: Path) -> None:
    words = [*RUN, "trainer.max_steps=40"]
    log = tmp_path / FOLDER / "killed" / "metrics.jsonl"
    with started(2, ["train", *words, "run_id=killed", "strategy=ddp"], tmp_path, environment) as job:
        end = time.monotonic() + 150
        while sum("clients" in line for line in jsonl.read(log)) < 3 and time.monotonic() < end:
            time.sleep(0.02)
        job.kill()
    reached = checkpoint.step_of(checkpoint.latest(log.parent))
    assert 0 < reached < 40
    scaledl("train", *words, "run_id=killed")  # on one rank
    scaledl("train", *words, "run_id=straight")
    assert_equal(log.parent, tmp_path / FOLDER / "straight")
    assert [line["step"] for line in jsonl.read(log) if "clients" in line] == list(range(1, 41))
