"""What transformers saved computes the same after an import, and after an export again."""

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from omegaconf import OmegaConf

from scaledl import checkpoint, run_directory
from scaledl.config.folders import CONF
from scaledl.config.validate import ConfigError
from scaledl.distributed import storage
from scaledl.distributed.pieces import Pieces
from scaledl.evaluate import load_run
from scaledl.export import _arguments, export
from scaledl.hf.read import local_folder
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


# --- files ----------------------------------------------------------------------------------------------------------


def imported(folder: Path, run: Path, words: list[str] | None = None) -> Path:
    return import_(str(folder), run, words or [], [CONF], [])


def test_shards_are_read_and_written(tmp_path: Path) -> None:
    reference = theirs("llama", tmp_path / "there", max_shard_size="20KB")
    assert len(list((tmp_path / "there").glob("*.safetensors"))) > 1
    run = imported(tmp_path / "there", tmp_path / "run")
    export(run, tmp_path / "back", "best", "hf", "30KB", None, [])
    files = sorted(path.name for path in (tmp_path / "back").glob("*.safetensors"))
    assert len(files) > 1
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        assert (tmp_path / "back" / file).stat().st_size < 33_000
    index = json.loads((tmp_path / "back/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * p.numel() for p in reference.parameters())
    for key, value in load(tmp_path / "back").state_dict().items():
        assert torch.equal(value, reference.state_dict()[key])


def test_dtypes_are_kept_and_changed(tmp_path: Path) -> None:
    theirs("qwen3", tmp_path / "float")
    model = load(tmp_path / "float").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "there")
    run = imported(tmp_path / "there", tmp_path / "run")
    weights = checkpoint.load_model_weights(checkpoint.latest(run))
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    for dtype, expected in ((None, torch.bfloat16), ("float32", torch.float32)):
        export(run, tmp_path / str(dtype), "best", "hf", "5GB", dtype, [])
        back = load(tmp_path / str(dtype))
        assert back.dtype == expected
        for key, value in back.state_dict().items():
            assert torch.equal(value.to(torch.bfloat16), model.state_dict()[key])


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "qwen3_moe"])
def test_other_names_of_the_same_tensors(name: str, tmp_path: Path) -> None:
    """Without the prefix of the bare model, with experts stacked, with masks that hold nothing."""
    from safetensors.torch import save_file

    reference = theirs(name, tmp_path / "there")
    base = "transformer." if name == "gpt2" else "model."
    stored = {key.removeprefix(base): value.contiguous().clone() for key, value in reference.state_dict().items()}
    if name == "gpt2":
        del stored["lm_head.weight"]
        stored["h.0.attn.bias"] = torch.ones(1, 1, 48, 48).tril()
    else:
        assert "layers.0.mlp.experts.gate_up_proj" in stored
    save_file(stored, tmp_path / "there/model.safetensors")
    run = imported(tmp_path / "there", tmp_path / "run")
    task = load_run(run, "best", [], with_data=False)[0]
    with torch.no_grad():
        torch.testing.assert_close(task.model(ids()), reference(ids()).logits, atol=1e-4, rtol=0)


def test_averaged_weights_are_what_is_written(tmp_path: Path) -> None:
    theirs("llama", tmp_path / "there")
    run = imported(tmp_path / "there", tmp_path / "run")
    weights = checkpoint.load_model_weights(checkpoint.latest(run))
    step = checkpoint.folder_of(run, 1)
    step.mkdir()
    averaged = {f"ema/{name}": Pieces.of(2 * tensor) for name, tensor in weights.items()}
    storage.save(step, {f"weights/{name}": Pieces.of(t) for name, t in weights.items()} | averaged, {})
    export(run, tmp_path / "back", "1", "hf", "5GB", None, [])
    embedding = load(tmp_path / "back").state_dict()["model.embed_tokens.weight"]
    assert torch.equal(embedding, 2 * weights["model.token_embedding.weight"])


# --- what is refused ------------------------------------------------------------------------------------------------


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shard_missing(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_elsewhere(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../there/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_unnamed(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": 1}}))


def damaged(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


def with_biases(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}, folder / "model.safetensors")


REFUSED = {
    "model": (lambda folder: change_config(folder, model_type="t5"), "model_type='t5'"),
    "deeper": (lambda folder: change_config(folder, num_hidden_layers=3), "no tensor model.layers.2."),
    "wider": (lambda folder: change_config(folder, intermediate_size=57), r"\(56, 32\) in the checkpoint"),
    "tied": (lambda folder: change_config(folder, num_hidden_layers=1), "no place for: model.layers.1."),
    "biases": (with_biases, "no place for: model.layers.0.self_attn.q_proj.bias"),
    "pickled": (pickled, "only pytorch_model.bin: pickles can run code"),
    "missing": (shard_missing, "lacks model-00001-of-00002.safetensors"),
    "elsewhere": (shard_elsewhere, "lacks ../there/model.safetensors"),
    "unnamed": (shard_unnamed, "is no list of files"),
    "damaged": (damaged, "model.safetensors cannot be read"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    "no json": (lambda folder: (folder / "config.json").write_text("{"), "is no JSON"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_imported_leaves_nothing(what: str, tmp_path: Path) -> None:
    spoil, said = REFUSED[what]
    theirs("llama", tmp_path / "there")
    spoil(tmp_path / "there")
    with pytest.raises(ValueError, match=said):
        imported(tmp_path / "there", tmp_path / "runs/new")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_is_read_is_all_that_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = ["config.json", "model.safetensors", "tokenizer.json", "spiece.model", "vocab.json", "merges.txt"]
    others = ["consolidated.safetensors", "original/model.safetensors", "onnx/config.json", "model.bin", "README.md"]
    fetched: list[str] = []

    def download(name: str, **patterns: Any) -> str:
        fetched.extend(huggingface_hub.utils.filter_repo_objects([*used, *others], **patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert local_folder("some/name") == tmp_path
    assert fetched == used


def test_a_name_that_is_nowhere_and_a_wrong_word(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was not brought from the Hugging Face Hub"):
        imported(Path("nobody/nothing"), tmp_path / "run")
    theirs("gpt2", tmp_path / "there")
    with pytest.raises(ConfigError, match=r"optimizer\.lrr"):
        imported(tmp_path / "there", tmp_path / "run", ["optimizer.lrr=1"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"model": {"_target_": "scaledl.models.mlp.MLP", "in_dim": 2, "out_dim": 2, "hidden_dims": []}},
            "a MLP has no class",
        ),
        ({"model.bias": True}, "no place for: bias=True"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(change: dict, said: str, tmp_path: Path) -> None:
    theirs("llama", tmp_path / "there")
    run = imported(tmp_path / "there", tmp_path / "run")
    config = run_directory.load_config(run)
    for key, value in change.items():
        OmegaConf.update(config, key, value, merge=False)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(config))
    with pytest.raises(ValueError, match=said):
        export(run, tmp_path / "back", "best", "hf", "5GB", None, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "there"]


def test_adapters_are_to_be_merged_first() -> None:
    config = OmegaConf.create({"model": {"_target_": "scaledl.models.gpt.GPT"}, "lora": {"rank": 4}})
    with pytest.raises(ValueError, match="scaledl merge"):
        _arguments(config)


def test_sizes_and_folders_in_the_way(tmp_path: Path) -> None:
    theirs("llama", tmp_path / "there")
    run = imported(tmp_path / "there", tmp_path / "run")
    with pytest.raises(ValueError, match="--max-shard-size 5 parsecs"):
        export(run, tmp_path / "back", "best", "hf", "5 parsecs", None, [])
    for folder in (tmp_path / "there", tmp_path / "there/config.json"):
        before = (tmp_path / "there/config.json").read_bytes()
        with pytest.raises(ValueError, match="is there already"):
            export(run, folder, "best", "hf", "5GB", None, [])
        assert (tmp_path / "there/config.json").read_bytes() == before
    with pytest.raises(ValueError, match="is there already"):
        imported(tmp_path / "there", run)
    (tmp_path / "empty").mkdir()
    export(run, tmp_path / "empty", "best", "hf", "0.5 MB", None, [])
    assert load(tmp_path / "empty")
