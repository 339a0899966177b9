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
from tests.distributed.launch import launch

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
        run_dir = tmp_path / "-".join((*layout.words, str(layout.ranks))).replace("/", "_")
        return log_of(words, layout, run_dir, environment | {"OMP_NUM_THREADS": "1"}), run_dir

    return run


@pytest.fixture(scope="module")
def by_one() -> dict[str, tuple[Log, dict[str, Tensor]]]:
    """What one process logged and saved, by its words."""
    return {}


def biases(run_dir: Path, step: int = STEPS) -> dict[str, Tensor]:
    saved = storage.load_whole(run_dir / "checkpoints" / f"step_{step:08d}", "weights/")
    return {name: tensor for name, tensor in saved.items() if name.endswith("router.bias")}


def assert_same(one: Log, other: Log, *names: str) -> None:
    gaps = {name: gap(one, other, name) for name in ("train/loss", "train/grad_norm", "val/loss", *names)}
    assert all(found.value <= 1e-5 for found in gaps.values()), gaps


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed_2", "deepspeed_3", "tp"])
def test_losses_and_balance_are_those_of_one_process(train, by_one, name: str) -> None:
    if "bias" not in by_one:
        log, run_dir = train(RUN, SINGLE)
        by_one["bias"] = log, biases(run_dir)
    one, expected = by_one["bias"]
    assert len(expected) == 2
    assert all(bias.abs().max() >= 0.02 for bias in expected.values())
    log, run_dir = train(RUN, LAYOUTS[name])
    assert_same(one, log, "train/expert_load_max", "train/expert_load_max_1")
    assert gap(one, log, "train/expert_load_max").value == 0
    torch.testing.assert_close(biases(run_dir), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["fsdp", "fsdp+tp"])
def test_auxiliary_losses_do_not_depend_on_ranks(train, by_one, name: str) -> None:
    if "loss" not in by_one:
        by_one["loss"] = train([*LOSS, "activation_checkpointing=full"], SINGLE)[0], {}
    log, _ = train(LOSS, LAYOUTS[name])
    assert_same(by_one["loss"][0], log, "train/balance_loss", "train/z_loss")


def test_a_resumed_run_repeats_the_balance_bit_for_bit(
    train, scaledl: Callable, environment: dict[str, str], tmp_path: Path
) -> None:
    _, straight = train([*RUN, "strategy=fsdp"], Layout(2, ()))
    words = ["train", *RUN, "strategy=fsdp", "run_id=stopped", "trainer.max_steps=3", "scheduler.max_steps=6"]
    launch(2, *words, folder=tmp_path, environment=environment)
    run_dir = tmp_path / "runs/llm/gpt_shakespeare/stopped"
    launch(2, "resume", str(run_dir), f"trainer.max_steps={STEPS}", folder=tmp_path, environment=environment)
    everything = (
        storage.load_whole(folder / "checkpoints" / f"step_{STEPS:08d}", "weights/") for folder in (straight, run_dir)
    )
    torch.testing.assert_close(*everything, rtol=0, atol=0)
    assert any(bias.abs().max() > 0 for bias in biases(run_dir, 3).values())
