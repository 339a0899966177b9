"""Adapters, preferences and the merging of an earlier run's adapters, on every strategy as in one process."""

import math
from pathlib import Path

import pytest

from scaledl.loggers import jsonl
from scripts.parity import LAYOUTS, SINGLE, gap, log_of
from tests.after_pretraining import TINY, conversations, preferences
from tests.distributed.launch import launch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
SIX = ["data/tokenizer=byte", *TINY, "trainer.max_steps=6", "trainer.val_check_interval=3", "scheduler.warmup_steps=0"]


def assert_same(one: list, other: list) -> None:
    gaps = {name: gap(one, other, name) for name in ("train/loss", "train/grad_norm", "val/loss")}
    assert gaps["train/loss"].value <= 1e-6, gaps
    assert gaps["val/loss"].value <= 1e-6, gaps
    assert gaps["train/grad_norm"].value <= 1e-5, gaps


def test_every_strategy_trains_adapters_as_one_process_does(environment, tmp_path: Path) -> None:
    environment |= {"OMP_NUM_THREADS": "1"}
    sft = ["experiment=llm/sft_docs", f"data.path={conversations(tmp_path)}", *SIX, "optimizer.lr=0.02"]
    log_of(sft, SINGLE, tmp_path / "sft", environment)
    dpo = ["experiment=llm/dpo_docs", f"data.path={preferences(tmp_path)}", f"init_from={tmp_path / 'sft'}", *SIX]
    dpo += ["data.micro_batch_size=3", "scheduler.max_steps=6"]
    one = log_of(dpo, SINGLE, tmp_path / "one", environment)
    assert one[-1]["val/loss"] < one[0]["train/loss"] - 0.003
    for name in ("ddp", "fsdp", "deepspeed_2"):
        assert_same(one, log_of(dpo, LAYOUTS[name], tmp_path / name, environment))

    # What is frozen is in checkpoints too, in shards where it is sharded.
    log_of([*dpo, "trainer.max_steps=3"], LAYOUTS["deepspeed_3"], tmp_path / "parts", environment)
    words = ["resume", str(tmp_path / "parts"), "trainer.max_steps=6", *LAYOUTS["fsdp"].words]
    launch(2, *words, folder=tmp_path, environment=environment)
    assert_same(one, jsonl.read(tmp_path / "parts" / "metrics.jsonl"))


def test_a_copy_is_the_reference_where_there_are_no_adapters(environment, tmp_path: Path) -> None:
    environment |= {"OMP_NUM_THREADS": "1"}
    sft = ["experiment=llm/sft_docs", f"data.path={conversations(tmp_path)}", *SIX, "lora=none", "trainer.max_steps=3"]
    log_of(sft, SINGLE, tmp_path / "sft", environment)
    dpo = ["experiment=llm/dpo_docs", f"data.path={preferences(tmp_path)}", f"init_from={tmp_path / 'sft'}", *SIX]
    dpo += ["lora=none"]
    one, other = (log_of(dpo, LAYOUTS.get(n, SINGLE), tmp_path / n, environment) for n in ("one", "deepspeed_3"))
    assert_same(one, other)
    assert one[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)  # so the copy began as the source too
