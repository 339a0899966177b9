"""What transformers saved computes the same after an import, and after an export again."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from scaledl.config.folders import CONF
from scaledl.evaluate import load_run
from scaledl.export import export
from scaledl.import_hf import import_

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
PLAIN = {"rope_type": "default", "rope_theta": 20_000.0}
GPT2 = {"vocab_size": 61, "n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
MODELS = {
    "gpt2": ("gpt2", GPT2),
    "gpt2_exact_gelu_untied": ("gpt2", {**GPT2, "activation_function": "gelu", "tie_word_embeddings": False}),
    "llama": ("llama", {**SIZES, "rope_parameters": LLAMA3}),
    "llama_wide_heads": ("llama", {**SIZES, "head_dim": 12, "rope_parameters": PLAIN, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**SIZES, "sliding_window": 7, "rope_parameters": PLAIN}),
    "mistral_odd": ("mistral", {**SIZES, "hidden_size": 30, "head_dim": 12, "sliding_window": None}),
    "qwen3": ("qwen3", {**SIZES, "head_dim": 12, "tie_word_embeddings": True, "rope_parameters": PLAIN}),
    "mixtral": ("mixtral", {**SIZES, "num_local_experts": 6, "sliding_window": 9}),
    "qwen3_moe": (
        "qwen3_moe",
        {**SIZES, "head_dim": 12, "moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3},
    ),
    "qwen3_moe_normalized": (
        "qwen3_moe",
        {**SIZES, "moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": True},
    ),
    "qwen3_window": ("qwen3", {**SIZES, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
}


def theirs(name: str, folder: Path, **save: Any) -> torch.nn.Module:
    model_type, arguments = MODELS[name]
    config = transformers.AutoConfig.for_model(model_type, **arguments)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # ones and zeros would hide a norm or a bias that is not copied
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder, **save)
    return model


def ids() -> torch.Tensor:
    return torch.randint(0, 61, (2, 24), generator=torch.Generator().manual_seed(1))


def load(folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_kept_by_import_and_export(name: str, tmp_path: Path) -> None:
    there, run, back = tmp_path / "there", tmp_path / "run", tmp_path / "back"
    reference = theirs(name, there)
    import_(str(there), run, [], [CONF], [])
    task = load_run(run, "best", [], with_data=False)[0]
    export(run, back, "last", "hf", "5GB", None, [])
    again = load(back)
    with torch.no_grad():
        expected = reference(ids()).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(task.model(ids()), expected, atol=1e-4, rtol=0)
        assert torch.equal(again(ids()).logits, expected)
    assert type(again) is type(reference)
    for key, value in reference.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
