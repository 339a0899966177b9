"""What a plan takes from a config: samples of the lengths that train, and the peak that the run's products have."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scaledl.config.folders import CONF
from scaledl.hardware import DEVICES
from scaledl.plan import Cluster, Training, plan
from scaledl.planning.memory import Layout

SMALL = ["model.dim=16", "model.depth=1", "model.num_heads=2", "model.num_kv_heads=1"]
CLUSTER = Cluster(1, DEVICES["a100"])


@pytest.fixture
def chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Conversations of 3 lengths, the first the shortest."""
    monkeypatch.chdir(tmp_path)
    roles = [{"role": "user", "content": "?"}]
    rows = [{"messages": [*roles, {"role": "assistant", "content": "a" * n}]} for n in (4, 40, 120)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["experiment=llm/sft_docs", "lora=none", "data/tokenizer=byte", "data.path=chats.jsonl", "data.seq_len=256"]
    words += ["data.val_fraction=0", "data.global_batch_size=4", *SMALL]
    return words


def test_memory_is_of_the_longest_sample_and_time_of_the_mean_one(chats: list[str]) -> None:
    training = Training(chats, [CONF], [])
    usual, longest = (each["input_ids"].shape[1] for each in (training.sample, training.longest))
    assert longest - usual == 80
    row = training.row(Layout("single", "whole"), CLUSTER)
    training.longest = training.sample
    training._simulated.clear()
    alike = training.row(Layout("single", "whole"), CLUSTER)
    assert row.time == alike.time
    assert row.memory.activations > 1.5 * alike.memory.activations


def test_tf32_gives_the_peak_that_it_gives_the_time(chats: list[str], tmp_path: Path) -> None:
    shares = []
    fast = replace(DEVICES["a100"], bandwidth=1e20)  # so that products alone take time
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        try:
            row, *_ = plan(chats, [CONF], [], Cluster(1, fast), output=tmp_path / "plan.json")
        finally:
            torch.set_float32_matmul_precision("highest")
        found = json.loads((tmp_path / "plan.json").read_text())
        flops = found["flops_per_sample"] * row.samples_per_second
        shares.append(flops / found["strategies"][0]["mfu"])
    assert shares == pytest.approx([19.5e12, 156e12])
