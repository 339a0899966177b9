"""The transformers library: `GPT2LMHeadModel` in its `Trainer`, whose own optimiser and arguments are used.

    python transformers_trainer.py JOB.json OUT.json

Attention and AdamW as the library chooses them (SDPA, fused), its split of what decays, torch_compile with --compile.
Not its default: samples in order; GPT-2's activation by PyTorch's kernel (`gelu_pytorch_tanh`, the same function as
`gelu_new`, which the library spells out in Python, slower); labels are given shifted, as `shift_labels`, so that all T
tokens are predicted; a constant rate, and no report.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import Clock
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments


class Windows(torch.utils.data.Dataset):
    def __init__(self, windows: np.ndarray) -> None:
        self.rows = windows.reshape(-1, windows.shape[-1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids, labels = torch.from_numpy(self.rows[index, :-1]), torch.from_numpy(self.rows[index, 1:])
        return {"input_ids": ids, "labels": labels, "shift_labels": labels}


class Recording(Trainer):
    """Keeps each loss."""

    losses: list[Tensor] = []

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        loss = super().training_step(*arguments, **named)
        self.losses.append(loss.detach())
        return loss


def ours_by_its_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """ScaleDL's weights under GPT-2's names; its matrices stand the other way round (`Conv1D`)."""
    renamed = {
        "token_embedding": "transformer.wte",
        "position_embedding": "transformer.wpe",
        "blocks.": "transformer.h.",
        "attention_norm": "ln_1",
        "feedforward_norm": "ln_2",
        "feedforward.up": "mlp.c_fc",
        "feedforward.down": "mlp.c_proj",
        "attention.out": "attn.c_proj",
    }
    found = {"lm_head.weight": weights["token_embedding.weight"]}
    for name, tensor in weights.items():
        parts = [tensor]
        if ".attention.k." in name or ".attention.v." in name:
            continue
        if ".attention.q." in name:
            parts += [weights[name.replace(".q.", f".{other}.")] for other in "kv"]
            name = name.replace("attention.q", "attn.c_attn")
        for old, new in renamed.items():
            name = name.replace(old, new)
        if name.startswith("norm."):
            name = f"transformer.ln_f.{name.removeprefix('norm.')}"
        whole = torch.cat(parts)
        found[name] = whole.mT.contiguous() if ".c_" in name and whole.dim() == 2 else whole
    return found


def train(job: dict[str, Any], folder: Path) -> list[Tensor]:
    config = GPT2Config(
        vocab_size=job["vocab_size"],
        n_positions=job["seq_len"],
        n_embd=job["dim"],
        n_layer=job["depth"],
        n_head=job["num_heads"],
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config)
    model.load_state_dict(ours_by_its_names(load_file(folder / "weights.safetensors")))
    arguments = TrainingArguments(
        output_dir=str(folder / "transformers"),
        per_device_train_batch_size=job["batch"],
        max_steps=job["steps"],
        learning_rate=job["lr"],
        adam_beta1=job["betas"][0],
        adam_beta2=job["betas"][1],
        weight_decay=job["weight_decay"],
        max_grad_norm=job["max_norm"],
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        bf16=job["precision"] == "bf16-mixed",
        torch_compile=job["compile"],
        use_cpu=not torch.cuda.is_available(),
        logging_steps=job["log_every"],
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Recording(model=model, args=arguments, train_dataset=Windows(np.load(folder / "windows.npy", "c")))
    trainer.train()
    return trainer.losses


def main() -> None:
    job_path, out = map(Path, sys.argv[1:])
    job = json.loads(job_path.read_text())
    clock = Clock(job)
    clock.write(out, train(job, job_path.parent))


if __name__ == "__main__":
    main()
