"""litgpt: its GPT class in its own training loop, `litgpt.pretrain.fit`, as `litgpt pretrain` sets it up.

    python litgpt_loop.py JOB.json OUT.json

Fabric with one device, one AdamW that is fused on a GPU only and chunked cross entropy, as in `litgpt.pretrain.main`;
torch.compile of the whole model, which `main` always asks for, only with --compile. Not litgpt's: our windows instead
of its data module, our weights instead of its draw, biases and norms without decay, a constant rate (min_lr = lr), and
learned positions, which its models do not have: none of a head is rotated, and the embedding adds the positions.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from clock import Clock
from litgpt import pretrain
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.model import GPT
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader


class WithPositions(nn.Embedding):
    def __init__(self, vocab_size: int, seq_len: int, dim: int) -> None:
        super().__init__(vocab_size, dim)
        self.positions = nn.Embedding(seq_len, dim)

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))


class Recording(L.Fabric):
    """Keeps each loss."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.losses: list[Tensor] = []

    def backward(self, tensor: Tensor, *arguments: Any, **named: Any) -> None:
        self.losses.append(tensor.detach())
        super().backward(tensor, *arguments, **named)


def ours_by_its_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {
        "token_embedding": "transformer.wte",
        "position_embedding": "transformer.wte.positions",
        "blocks.": "transformer.h.",
        "attention_norm": "norm_1",
        "feedforward_norm": "norm_2",
        "feedforward.up": "mlp.fc",
        "feedforward.down": "mlp.proj",
        "attention.out": "attn.proj",
    }
    found = {"lm_head.weight": weights["token_embedding.weight"]}
    for name, tensor in weights.items():
        parts = [tensor]
        if ".attention.k." in name or ".attention.v." in name:
            continue
        if ".attention.q." in name:
            parts += [weights[name.replace(".q.", f".{other}.")] for other in "kv"]
            name = name.replace("attention.q", "attn.qkv")
        for old, new in renamed.items():
            name = name.replace(old, new)
        if name.startswith("norm."):
            name = f"transformer.ln_f.{name.removeprefix('norm.')}"
        found[name] = torch.cat(parts)
    return found


def train(job: dict[str, Any], folder: Path) -> list[Tensor]:
    fabric = Recording(devices=1, strategy="auto", precision=job["precision"])
    fabric.launch()
    config = Config(
        name="bench",
        block_size=job["seq_len"],
        vocab_size=job["vocab_size"],
        padded_vocab_size=job["vocab_size"],
        n_layer=job["depth"],
        n_head=job["num_heads"],
        n_embd=job["dim"],
        rotary_percentage=0.0,
        parallel_residual=False,
        gelu_approximate="tanh",
        bias=True,
    )
    with fabric.init_module(empty_init=False):
        model = GPT(config)
        model.transformer.wte = WithPositions(job["vocab_size"], job["seq_len"], job["dim"])
    model.load_state_dict(ours_by_its_names(load_file(folder / "weights.safetensors")))
    model.transformer.wte.weight = model.lm_head.weight
    parameters = list(model.parameters())
    decayed = [parameter for parameter in parameters if parameter.dim() >= 2]
    plain = [parameter for parameter in parameters if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": job["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
    setup = fabric.setup(torch.compile(model) if job["compile"] else model)
    fused = fabric.device.type == "cuda"
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(groups, lr=job["lr"], betas=tuple(job["betas"]), fused=fused))
    windows = torch.from_numpy(np.load(folder / "windows.npy", mmap_mode="c"))
    rows = windows.flatten(0, 1)  # (steps * B, T + 1)
    loader, few = fabric.setup_dataloaders(
        DataLoader(rows, batch_size=job["batch"]), DataLoader(rows[:1], batch_size=1)
    )
    tokens = job["steps"] * job["batch"] * job["seq_len"]
    pretrain.fit(
        fabric=fabric,
        devices=1,
        state={"model": setup, "optimizer": optimizer, "iter_num": 0, "step_count": 0},
        train_dataloader=loader,
        val_dataloader=few,
        out_dir=folder,
        tokenizer_dir=None,
        train=TrainArgs(
            save_interval=None,
            log_interval=job["log_every"],
            global_batch_size=job["batch"],
            micro_batch_size=job["batch"],
            lr_warmup_steps=0,
            max_tokens=tokens,
            max_norm=job["max_norm"],
            min_lr=job["lr"],
        ),
        eval=EvalArgs(interval=job["steps"] + 1, max_iters=1, final_validation=False),
    )
    return fabric.losses


def main() -> None:
    job_path, out = map(Path, sys.argv[1:])
    job = json.loads(job_path.read_text())
    clock = Clock(job)
    clock.write(out, train(job, job_path.parent))


if __name__ == "__main__":
    main()
