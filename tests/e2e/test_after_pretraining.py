"""Pre-train, tune on conversations with adapters, then on preferences; and what is done with the runs."""

import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scaledl.checkpoint import choose, load_model_weights
from tests.after_pretraining import TINY, conversations, multiple_choice, preferences
from tests.conftest import metrics_of, summary_of

pytestmark = pytest.mark.e2e


def values(run_dir: Path, name: str) -> list[float]:
    return [line[name] for line in metrics_of(run_dir) if name in line]


def test_three_commands_each_improve_their_own_metric(scaledl, tmp_path: Path) -> None:
    steps = [*TINY, "trainer.max_steps=24", "trainer.val_check_interval=8", "scheduler.warmup_steps=4"]
    runs = tmp_path / "runs/llm"
    small = ["data.embedded=docs", "data.tokenizer.vocab_size=400", "trainer.limit_val_batches=2"]
    scaledl("train", "experiment=llm/pretrain_docs", "run_id=a", *steps, *small)
    bits = values(runs / "pretrain_docs/a", "val/bpb")
    assert bits[-1] < 0.97 * bits[0]

    talks = f"data.path={conversations(tmp_path)}"
    fast = [*steps, "run_id=a", "optimizer.lr=0.01"]
    said = scaledl("train", "experiment=llm/sft_docs", "init_from=runs/llm/pretrain_docs/a", talks, *fast)
    assert "24 of 52 tensors begin as in" in said.stdout
    assert values(runs / "sft_docs/a", "val/loss")[-1] < values(runs / "sft_docs/a", "train/loss")[0] - 0.5

    pairs = f"data.path={preferences(tmp_path)}"
    scaledl("train", "experiment=llm/dpo_docs", "init_from=runs/llm/sft_docs/a", pairs, *fast)
    dpo = runs / "dpo_docs/a"
    assert values(dpo, "train/loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert values(dpo, "val/acc")[-1] == 1.0
    assert values(dpo, "val/margin")[-1] > values(dpo, "val/margin")[0]

    # What the run trained beside is what it began with; the adapters of the run before are in it.
    told = scaledl("merge", "runs/llm/sft_docs/a", "--to", "merged").stdout
    merged, base = weights_of(tmp_path / "merged"), weights_of(dpo)
    assert told.strip() == "merged"
    written = OmegaConf.load(tmp_path / "merged/config.yaml")
    assert (written.run_dir, written.data.tokenizer.path) == ("merged", str(tmp_path / "merged"))
    assert merged.keys() == {name for name in base if ".lora_" not in name}
    assert all((merged[name] - base[name]).abs().max() < 1e-6 for name in merged)
    first = weights_of(runs / "pretrain_docs/a")
    assert (merged["model.blocks.0.attention.q.weight"] - first["model.blocks.0.attention.q.weight"]).abs().max() > 1e-4

    best = summary_of(runs / "sft_docs/a")["best"]["value"]
    assert f"{best:.4f}" in scaledl("evaluate", "merged").stdout
    refused = scaledl("merge", "runs/llm/pretrain_docs/a", "--to", "again", code=1).stderr
    assert "was trained without lora" in refused

    table = scaledl("evaluate", "runs/llm/dpo_docs/a", "--multiple-choice", str(multiple_choice(tmp_path))).stdout
    assert "acc_norm" in table
    answer = ["--chat", "--prompt", "What follows 3?", "--temperature", "0", "--max-new-tokens", "5"]
    written = [scaledl("generate", run, *answer).stdout for run in ("runs/llm/sft_docs/a", "merged")]
    assert written[0] == written[1]


def weights_of(run_dir: Path) -> dict:
    return load_model_weights(choose(run_dir, "best"))


def test_a_resumed_run_without_adapters_compares_with_the_same_reference(scaledl, tmp_path: Path) -> None:
    words = ["experiment=llm/dpo_docs", f"data.path={preferences(tmp_path)}", "data/tokenizer=byte", *TINY]
    words += ["lora=none", "scheduler.max_steps=6", "scheduler.warmup_steps=0", "trainer.val_check_interval=3"]
    scaledl("train", *words, "run_id=whole", "trainer.max_steps=6")
    scaledl("train", *words, "run_id=parts", "trainer.max_steps=3")
    scaledl("resume", "runs/llm/dpo_docs/parts", "trainer.max_steps=6")
    whole, parts = (metrics_of(tmp_path / "runs/llm/dpo_docs" / name) for name in ("whole", "parts"))
    assert whole == parts
    assert whole[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert whole[-1]["val/loss"] < 0.69
