#!/usr/bin/env python3
"""The framework's own cost: the same model, data and optimiser in a bare PyTorch loop and in `scaledl train`, in turn.

  .venv/bin/python scripts/bench_tax.py experiment=llm/gpt_shakespeare
  .venv/bin/python scripts/bench_tax.py experiment=llm/gpt_shakespeare model=gpt2 data.seq_len=256 \\
      data.global_batch_size=1 data.micro_batch_size=1 --steps 8 --rounds 3

Prints seconds a step of both, per round, and the median ratio of the pairs. Losses are compared: the same numbers must
come out of both, or the ratio would mean nothing.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from scaledl import build
from scaledl.config.folders import CONF
from scaledl.data.sampler import TrainBatches
from scaledl.optim.groups import decay_groups
from scaledl.train import composed, run

SKIPPED = 5  # steps that pay for allocation, left out of both


def bare_loop(config: DictConfig, steps: int) -> tuple[float, list[float]]:
    """Seconds a step and the losses of a loop as one would write it by hand."""
    data = build.data(config)
    train_set = data.split("train")
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    model = build.model(config)().to(device)
    model.train()
    optimizer = build.instantiate(config.optimizer)(decay_groups(model), fused=True)
    scheduler = build.instantiate(config.scheduler)(optimizer)
    batches = TrainBatches(len(train_set), data.global_batch_size, data.micro_batch_size, seed=data.seed)
    losses = []
    for step, indices in enumerate(batches, start=1):
        batch = {name: tensor.to(device) for name, tensor in train_set.__getitems__(indices).items()}
        logits = model(batch["input_ids"])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.trainer.gradient_clip_val, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step % config.trainer.log_every_n_steps == 0:
            losses.append(loss.item())
        if step == SKIPPED:
            began = time.perf_counter()
        if step == steps:
            break
    return (time.perf_counter() - began) / (steps - SKIPPED), losses


def through_scaledl(config: DictConfig) -> tuple[float, list[float]]:
    """Seconds a step and the logged losses of the same run by the framework, all its callbacks included."""
    with contextlib.redirect_stdout(io.StringIO()):
        run(config)
    run_dir = Path(config.run_dir)
    summary = json.loads((run_dir / "summary.json").read_text())
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    every = config.trainer.log_every_n_steps
    return config.data.global_batch_size / summary["throughput"]["samples_per_second"], losses[every > 1 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fixed = [f"trainer.max_steps={arguments.steps}", f"runs_dir={folder}", "~callbacks.samples"]
        never = [f"trainer.val_check_interval={arguments.steps + 1}", f"checkpoint.every_n_steps={arguments.steps + 1}"]
        words = [*arguments.overrides, *fixed, *never, "trainer.limit_val_batches=1"]
        ratios = []
        for number in range(arguments.rounds):
            config = composed(words, [CONF], [])
            config.run_id = f"round{number}"
            bare, bare_losses = bare_loop(config, arguments.steps)
            ours, our_losses = through_scaledl(OmegaConf.create(config))
            gap = max((abs(a - b) for a, b in zip(bare_losses, our_losses, strict=True)), default=0.0)
            ratios.append(ours / bare)
            print(
                f"round {number + 1}: bare {bare * 1e3:.2f} ms/step, scaledl {ours * 1e3:.2f} ms/step,"
                f" ratio {ratios[-1]:.4f}, largest difference of a loss {gap:.1e}",
                flush=True,
            )
        print(f"median ratio {statistics.median(ratios):.4f} over {arguments.rounds} rounds of {arguments.steps} steps")


if __name__ == "__main__":
    main()
