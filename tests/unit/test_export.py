"""A program of torch.export computes what the model computes, on other sizes too."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from scaledl.config.folders import CONF
from scaledl.data.tokenizer import ByteTokenizer
from scaledl.evaluate import load_run
from scaledl.export import _inputs_of, export
from scaledl.hf.tokenizer import files_of
from scaledl.import_hf import import_
from scaledl.train import train

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALEDL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def program_of(run: Path, which: str = "last") -> tuple[Any, Any]:
    export(run, Path("program"), which, "torch_export", "5GB", None, [])
    return torch.export.load("program/model.pt2").module(), load_run(run, which, [], with_data=False)[0].model


@pytest.mark.parametrize("name", ["gpt2", "mistral", "qwen3_moe"])
def test_a_language_model(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=257, n_positions=48, n_embd=32, n_layer=2, n_head=4)
    else:
        sizes: dict[str, Any] = {"vocab_size": 257, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"hidden_size": 32, "intermediate_size": 56, "num_key_value_heads": 2, "max_position_embeddings": 48}
        own = {"mistral": {"sliding_window": 7}, "qwen3_moe": {"moe_intermediate_size": 24, "num_experts_per_tok": 2}}[
            name
        ]
        config = transformers.AutoConfig.for_model(name, **sizes, **own)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained("there")
    for file, text in files_of(ByteTokenizer(), 48).items():
        Path("there", file).write_text(text)
    Path("fox.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    run = import_("there", Path("run"), ["data.path=fox.txt", "data.seq_len=24"], [CONF], [])
    if name == "qwen3_moe":  # on CPU; its experts are an operator of ours
        with pytest.raises(ValueError, match=r"computes by scaledl\.grouped_linear"):
            program_of(run)
        assert not list(tmp_path.glob("*program*"))
        return
    program, model = program_of(run)
    for shape in ((2, 24), (1, 5), (5, 48)):
        ids = torch.randint(0, 257, shape)
        with torch.no_grad():
            torch.testing.assert_close(program(ids), model(ids), atol=1e-5, rtol=0)


def test_a_classifier() -> None:
    train(["experiment=mlp/circles", "trainer.max_steps=2", "run_dir=run"], [CONF], [])
    program, model = program_of(Path("run"))
    for batch_size in (1, 7):
        x = torch.randn(batch_size, 2)
        with torch.no_grad():
            torch.testing.assert_close(program(x), model(x), atol=1e-6, rtol=0)


class Sampler(nn.Module):
    """Is called on more than tensors."""

    def forward(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x


def test_what_is_no_one_function_is_refused() -> None:
    task = SimpleNamespace(model=Sampler())
    for objective in (lambda batch: task.model(batch["x"], "noise"), lambda batch: batch["x"]):
        task.objective = objective
        task.model.weight = nn.Parameter(torch.ones(1))
        with pytest.raises(ValueError, match="no one function to export"):
            _inputs_of(task, {"x": torch.ones(2)})
