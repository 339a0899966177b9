#!/usr/bin/env python
"""Memory and time of a training step without activation checkpointing, with selective and with full.

  .venv/bin/python scripts/bench_checkpointing.py
  .venv/bin/python scripts/bench_checkpointing.py --dim 768 --depth 12 --batch-size 8 --rounds 20 --json kept.json

One model of each kind, all from one seed, takes one step in turn, so that a machine that other people use slows all
alike. Kept is what the forward pass leaves in memory, by the allocator; time is the median of a step's milliseconds.
Exits with 1 if a gradient differs between the kinds.
"""

import argparse
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from scaledl.distributed.parallelize import Checkpointing, ModelBuilder
from scaledl.models.gpt import GPT

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def kept_bytes(model: nn.Module, ids: Tensor) -> int:
    """What the forward pass leaves in memory."""
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        loss = model.loss(ids, ids)  # type: ignore[operator]
        return torch.cuda.memory_allocated() - before + 0 * loss.ndim
    with torch.profiler.profile(profile_memory=True) as profile:
        loss = model.loss(ids, ids)  # type: ignore[operator]
    kept = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    return kept + 0 * loss.ndim


def step_seconds(model: nn.Module, ids: Tensor) -> float:
    model.zero_grad()
    began = time.perf_counter()
    model.loss(ids, ids).backward()  # type: ignore[operator]
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"dim": 256, "depth": 6, "num-heads": 4, "vocab-size": 512, "seq-len": 256, "batch-size": 8, "rounds": 5}
    for flag, default in sizes.items():
        parser.add_argument(f"--{flag}", type=int, default=default)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args()
    make = partial(
        GPT, given.vocab_size, given.seq_len, dim=given.dim, depth=given.depth, num_heads=given.num_heads, bias=False
    )
    kinds: tuple[Checkpointing, ...] = get_args(Checkpointing)
    models = {kind: ModelBuilder(make, activation_checkpointing=kind)().to(DEVICE) for kind in kinds}
    ids = torch.randint(0, given.vocab_size, (given.batch_size, given.seq_len), device=DEVICE)
    for model in models.values():
        step_seconds(model, ids)
    kept = {kind: kept_bytes(model, ids) for kind, model in models.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(given.rounds):
        for kind, model in models.items():
            seconds[kind].append(step_seconds(model, ids))
    gradients = {kind: [parameter.grad for parameter in model.parameters()] for kind, model in models.items()}
    same = all(torch.equal(a, b) for kind in kinds for a, b in zip(gradients[kind], gradients["none"], strict=True))
    table = Table("activation_checkpointing", "kept", "of none", "ms/step", "of none")
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    for kind in kinds:
        table.add_row(
            kind,
            f"{kept[kind] / 2**20:.1f} MiB",
            f"{kept[kind] / kept['none']:.3f}",
            f"{medians[kind] * 1e3:.1f}",
            f"{medians[kind] / medians['none']:.3f}",
        )
    Console().print(table, f"gradients are {'equal bit for bit' if same else 'NOT equal'}", sep="\n")
    if given.json:
        figures = {kind: {"kept_bytes": kept[kind], "seconds": seconds[kind]} for kind in kinds}
        given.json.write_text(json.dumps(figures, indent=1))
    sys.exit(not same)


if __name__ == "__main__":
    main()
