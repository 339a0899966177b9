"""Round trips with transformers, by the commands that a person types: what we trained, and what others trained."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from scaledl import build
from scaledl.data.tokenizer import BpeTokenizer, load_tokenizer
from scaledl.evaluate import load_run
from scaledl.hf.tokenizer import files_of
from tests.conftest import TINY_GPT, metrics_of, summary_of

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytestmark = pytest.mark.e2e
transformers = pytest.importorskip("transformers")

TEXT = "The quick brown fox jumps over the lazy dog. " * 400
RUN = Path("runs/llm/gpt_shakespeare/a")
SHAPES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0},
}
STEPS, LR, WEIGHT_DECAY, BETAS = 10, 3e-3, 0.1, (0.9, 0.95)
TRAINING = [
    "data.path=fox.txt",
    "data.seq_len=32",
    "data.global_batch_size=4",
    "scheduler=constant",
    "scheduler.warmup_steps=0",
    f"optimizer.lr={LR}",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_n_steps=1",
    "trainer.gradient_clip_val=null",
]


def test_what_was_trained_here_computes_and_writes_the_same_there(scaledl, tmp_path: Path) -> None:
    (tmp_path / "fox.txt").write_text(TEXT)
    short = ["data.path=fox.txt", "trainer.max_steps=60", "trainer.val_check_interval=60", "run_id=a"]
    scaledl("train", *TINY_GPT, *short, "data/tokenizer=byte")
    said = scaledl("export", str(RUN), "--to", "there", "--max-shard-size", "50KB").stdout
    assert "Qwen3ForCausalLM" in said
    there = tmp_path / "there"
    assert len(list(there.glob("model-*-of-*.safetensors"))) > 1

    model = transformers.AutoModelForCausalLM.from_pretrained(there).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(there)
    ids = tokenizer(TEXT[:90], return_tensors="pt").input_ids.view(3, 30)
    assert ids[0].tolist() == load_tokenizer(tmp_path / RUN).encode(TEXT[:30]).tolist()
    ours: Any = load_run(tmp_path / RUN, "best", [], with_data=False)[0].model
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, ours(ids), atol=1e-4, rtol=0)
    prompt = "The quick"
    written = scaledl("generate", str(RUN), "--prompt", prompt, "--temperature", "0", "--max-new-tokens", "20").stdout
    start = tokenizer(prompt, return_tensors="pt")
    greedy = model.generate(**start, do_sample=False, max_new_tokens=20, pad_token_id=0)
    assert tokenizer.decode(greedy[0]) == written.rstrip("\n")

    assert "is there already" in scaledl("export", str(RUN), "--to", "there", code=1).stderr
    scaledl("export", str(RUN), "--to", "program", "--format", "torch_export")
    program = torch.export.load(tmp_path / "program/model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(ids[:, :17]), ours(ids[:, :17]), atol=1e-4, rtol=0)


def test_what_others_trained_goes_on_here_as_there(scaledl, tmp_path: Path) -> None:
    (tmp_path / "fox.txt").write_text(TEXT)
    model = saved_by_transformers("llama", SHAPES, tmp_path / "there")
    said = scaledl("import", "there").stdout
    assert "llama" in said
    imported = tmp_path / "runs/imported/there"
    scaledl("train", "experiment=llm/finetune", f"init_from={imported}", *TRAINING, "run_id=on")
    run_dir = tmp_path / "runs/llm/finetune/on"
    assert losses_of(run_dir) == pytest.approx(losses_there(model, run_dir), abs=1e-4)
    assert scaledl("import", "there", code=1).stderr.startswith("scaledl: runs/imported/there is there already")

    imported.rename(tmp_path / "away")  # what came from there the run has kept
    before = summary_of(run_dir)["best"]["value"]
    scaledl("resume", "runs/llm/finetune/on", f"trainer.max_steps={STEPS + 5}", "trainer.val_check_interval=5")
    assert summary_of(run_dir)["steps"] == STEPS + 5
    assert summary_of(run_dir)["best"]["value"] < before
    run_dir.rename(tmp_path / "moved")
    assert f"{summary_of(tmp_path / 'moved')['best']['value']:.4f}" in scaledl("evaluate", "moved").stdout
    assert scaledl("generate", "moved", "--prompt", "The", "--max-new-tokens", "3").stdout.startswith("The")
    scaledl("export", "moved", "--to", "back")
    assert (tmp_path / "back/tokenizer.json").is_file()


def test_an_imported_run_is_resumed_and_exported_again(scaledl, tmp_path: Path) -> None:
    (tmp_path / "fox.txt").write_text(TEXT)
    plain = {"vocab_size": 300, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = saved_by_transformers("gpt2", plain | rates, tmp_path / "there")
    scaledl("import", "there", "--to", "run", *TRAINING)
    scaledl("resume", "run")
    assert losses_of(tmp_path / "run") == pytest.approx(losses_there(model, tmp_path / "run"), abs=1e-4)
    scaledl("export", "run", "--to", "back", "--checkpoint", "last", "--dtype", "bfloat16")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert back.dtype == torch.bfloat16
    for name, value in model.state_dict().items():  # which went the same 10 steps
        torch.testing.assert_close(back.state_dict()[name].float(), value, atol=2e-3, rtol=1e-2)
    scaledl("generate", "run", "--max-new-tokens", "3")


def saved_by_transformers(model_type: str, arguments: dict[str, Any], folder: Path) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **arguments, initializer_range=0.1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer = BpeTokenizer(300)
    tokenizer.fit([TEXT])
    for file, text in files_of(tokenizer, 64).items():
        (folder / file).write_text(text)
    return model.train()


def losses_of(run_dir: Path) -> list[float]:
    losses = [line["train/loss"] for line in metrics_of(run_dir) if "train/loss" in line]
    assert len(losses) == STEPS
    return losses


def losses_there(model: Any, run_dir: Path) -> list[float]:
    """A plain loop with their model over the batches of a run of ours."""
    data = build.data(OmegaConf.load(run_dir / "config.yaml"))
    decays = [p for p in model.parameters() if p.ndim >= 2]
    others = [{"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([{"params": decays}, *others], lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY)
    losses = []
    for _, batch in zip(range(STEPS), data.train_dataloader(), strict=False):
        logits = model(batch["input_ids"]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    return losses
