"""A language model from text to its own writing, by the commands that a person types."""

from pathlib import Path

import pytest

from tests.conftest import TINY_GPT, metrics_of, summary_of

pytestmark = pytest.mark.e2e
RUN = Path("runs/llm/gpt_shakespeare/a")
TEXT = "The quick brown fox jumps over the lazy dog. " * 400


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_train_generate_evaluate(scaledl, tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "fox.txt").write_text(TEXT)
    scaledl(
        "train",
        *(word for word in TINY_GPT if word != "~callbacks.samples"),
        "data.path=fox.txt",
        f"data/tokenizer={tokenizer}",
        "data.seq_len=16",
        "trainer.max_steps=120",
        "trainer.val_check_interval=60",
        "run_id=a",
    )
    run_dir = tmp_path / RUN
    summary = summary_of(run_dir)
    assert summary["status"] == "completed"
    assert (summary["experiment"], summary["family"], summary["steps"]) == ("llm/gpt_shakespeare", "llm", 120)
    assert summary["samples_seen"] == 120 * 12
    assert summary["tokens_seen"] == 120 * 12 * 16
    assert summary["best"]["value"] < 0.7  # a text that repeats itself is nearly certain
    assert summary["metrics"]["val/bpb"] > 0
    assert next((run_dir / "samples").glob("*.txt")).read_text()
    assert {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints"} <= {path.name for path in run_dir.iterdir()}

    words = ["generate", str(RUN), "--prompt", "The quick", "--max-new-tokens", "40"]
    greedy = scaledl(*words, "--temperature", "0").stdout
    assert greedy.startswith("The quick")
    assert "brown" in greedy
    sampled = scaledl(*words, "--seed", "1", "--top-k", "5", "--top-p", "0.9").stdout
    assert sampled == scaledl(*words, "--seed", "1", "--top-k", "5", "--top-p", "0.9").stdout
    assert scaledl(*words, "--temperature", "0", "--stop", "fox").stdout.rstrip("\n").endswith("brown ")

    own = scaledl("evaluate", str(RUN)).stdout
    assert f"{summary['best']['value']:.4f}" in own
    other = scaledl("evaluate", str(RUN), "fox.txt").stdout
    assert all(name in other for name in ("val/loss", "val/perplexity", "val/bpb"))


def test_precisions_activation_checkpointing_and_accumulation_train(scaledl, tmp_path: Path) -> None:
    losses = {}
    for name, words in {
        "plain": [],
        "mixed": ["precision=bf16-mixed"],
        "half": ["precision=bf16-true"],
        "recomputed": ["activation_checkpointing=full"],
        "accumulated": ["data.micro_batch_size=4"],
    }.items():
        scaledl("train", *TINY_GPT, "trainer.max_steps=20", "trainer.log_every_n_steps=1", f"run_id={name}", *words)
        lines = metrics_of(tmp_path / RUN.parent / name)
        losses[name] = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses["recomputed"] == losses["plain"]
    assert losses["accumulated"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["mixed"] == pytest.approx(losses["plain"], rel=0.02)
    assert losses["half"] == pytest.approx(losses["plain"], rel=0.05)
