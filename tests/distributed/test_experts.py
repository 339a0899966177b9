"""Experts on several ranks: the losses, the balance and the checkpoints of one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scaledl.distributed import storage
from scripts.parity import LAYOUTS, SINGLE, Layout, gap, log_of
from tests.conftest import TINY_GPT

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

Log = list[dict[str, Any]]
STEPS = 6
EXPERTS = ["model.num_experts=4", "model.num_shared_experts=1", "model.router_score=sigmoid", "model.balance_rate=0.01"]
# Ranks accumulate two micro-batches.
RUN = [*TINY_GPT, *EXPERTS, f"trainer.max_steps={STEPS}", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1"]
RUN += ["data.micro_batch_size=3", "trainer.gradient_clip_val=0.5", "scheduler.warmup_steps=2"]
RUN += ["callbacks.expert_load._target_=scaledl.callbacks.expert_load.ExpertLoad", "checkpoint.every_n_steps=3"]
LOSS = [*RUN, "model.balance=loss", "model.balance_rate=0.1", "model.router_z_loss=0.01"]


@pytest.fixture
def train(environment: dict[str, str], tmp_path: Path) -> Callable[[list[str], Layout], tuple[Log, Path]]:
    def run(words: list[str], layout: Layout) -> tuple[Log, Path]:
        run_dir = tmp_path / f"of_{layout.ranks}"
        return log_of(words, layout, run_dir, environment | {"OMP_NUM_THREADS": "1"}), run_dir

    return run


@pytest.fixture(scope="module")
def kept() -> list[tuple[Log, dict[str, Tensor]]]:
    return []


@pytest.fixture
def of_one(train, kept) -> Callable[[], tuple[Log, dict[str, Tensor]]]:
    """What one process logs, and its weights at the end; it runs once."""

    def run() -> tuple[Log, dict[str, Tensor]]:
        if not kept:
            log, run_dir = train(RUN, SINGLE)
            kept.append((log, weights(run_dir)))
        return kept[0]

    return run


def weights(run_dir: Path) -> dict[str, Tensor]:
    return storage.load_whole(run_dir / "checkpoints" / f"step_{STEPS:08d}", "weights/")


def biases(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in saved.items() if name.endswith("router.bias")}


def assert_same(one: Log, other: Log, *names: str) -> None:
    gaps = {name: gap(one, other, name) for name in ("train/loss", "train/grad_norm", "val/loss", *names)}
    assert all(found.value <= 1e-5 for found in gaps.values()), gaps


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed_3", "tp"])
def test_losses_and_balance_are_those_of_one_process(train, of_one, name: str) -> None:
    one, saved = of_one()
    expected = biases(saved)
    assert len(expected) == 2
    assert all(bias.abs().max() >= 0.02 for bias in expected.values())
    log, run_dir = train(RUN, LAYOUTS[name])
    assert_same(one, log)
    assert gap(one, log, "train/expert_load_max").value == 0
    torch.testing.assert_close(biases(weights(run_dir)), expected, rtol=0, atol=0)


def test_experts_that_shards_do_not_divide_are_divided_along_another_axis(train) -> None:
    words = [*RUN, "model.num_experts=5"]
    (one, single), (log, run_dir) = (train(words, layout) for layout in (SINGLE, LAYOUTS["fsdp"]))
    assert_same(one, log)
    torch.testing.assert_close(weights(run_dir), weights(single), rtol=0, atol=1e-5)


def test_auxiliary_losses_do_not_depend_on_ranks(train) -> None:
    one, _ = train([*LOSS, "activation_checkpointing=full"], SINGLE)
    assert_same(one, train(LOSS, LAYOUTS["fsdp+tp"])[0], "train/balance_loss", "train/z_loss")


def test_a_resumed_run_repeats_the_balance_bit_for_bit(train, of_one, scaledl: Callable, tmp_path: Path) -> None:
    _, straight = of_one()
    scaledl("train", *RUN, "trainer.max_steps=3", f"scheduler.max_steps={STEPS}", "run_dir=stopped")
    before = storage.load_whole(tmp_path / "stopped/checkpoints/step_00000003", "weights/")
    assert all(before[name].any() for name in before if name.endswith("router.bias"))
    scaledl("resume", "stopped", f"trainer.max_steps={STEPS}")
    found = storage.load_whole(tmp_path / f"stopped/checkpoints/step_{STEPS:08d}", "weights/")
    torch.testing.assert_close(found, straight, rtol=0, atol=0)
