"""A training loop as one writes it by hand, after nanoGPT's recipe: one file, plain PyTorch.

    python bare_loop.py JOB.json OUT.json

One matrix for queries, keys and values; causal `scaled_dot_product_attention`; autocast; fused AdamW, decay on matrices
only; gradients clipped by `clip_grad_norm_` and set to None; pinned batches on a GPU; the loss read every 10 steps;
torch.compile of the whole model with --compile.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from clock import Clock
from safetensors.torch import load_file
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        heads = (B, T, self.num_heads, C // self.num_heads)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(self.attention_norm(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, vocab_size: int, seq_len: int, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, dim), nn.Embedding(seq_len, dim)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)  # (B, T, V)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))


def ours_by_its_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """ScaleDL's weights under the names above; queries, keys and values in one."""
    renamed = {
        "token_embedding": "tokens",
        "position_embedding": "positions",
        "attention.out": "out",
        "feedforward_norm": "mlp_norm",
        "feedforward.": "",
    }
    found = {}
    for name, tensor in weights.items():
        parts = [tensor]
        if ".attention.k." in name or ".attention.v." in name:
            continue
        if ".attention.q." in name:
            parts += [weights[name.replace(".q.", f".{other}.")] for other in "kv"]
            name = name.replace("attention.q", "qkv")
        for old, new in renamed.items():
            name = name.replace(old, new)
        found[name] = torch.cat(parts)
    return found


def train(job: dict[str, Any], folder: Path, clock: Clock) -> list[Tensor]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    windows = np.load(folder / "windows.npy", mmap_mode="r")
    model = GPT2(*(job[name] for name in ("vocab_size", "seq_len", "dim", "depth", "num_heads")))
    model.load_state_dict(ours_by_its_names(load_file(folder / "weights.safetensors")))
    model.to(device)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    plain = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": job["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=job["lr"], betas=tuple(job["betas"]), fused=True)
    forward: Any = torch.compile(model) if job["compile"] else model
    mixed = job["precision"] == "bf16-mixed"
    losses = []
    for step in range(job["steps"]):
        window = torch.from_numpy(windows[step])
        ids, labels = window[:, :-1].contiguous(), window[:, 1:].contiguous()
        if device == "cuda":
            ids, labels = (t.pin_memory().to(device, non_blocking=True) for t in (ids, labels))
        with torch.autocast(device, torch.bfloat16) if mixed else contextlib.nullcontext():
            loss = forward(ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), job["max_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if (step + 1) % job["log_every"] == 0:
            print(f"step {step + 1} loss {loss.item():.4f}", flush=True)
    return losses


def main() -> None:
    job_path, out = map(Path, sys.argv[1:])
    job = json.loads(job_path.read_text())
    clock = Clock(job)
    clock.write(out, train(job, job_path.parent, clock))


if __name__ == "__main__":
    main()
