#!/usr/bin/env python3
"""The framework's own cost: a bare PyTorch loop and `scaledl train`, one step of each in turn.

  .venv/bin/python scripts/bench_tax.py experiment=llm/gpt_shakespeare
  .venv/bin/python scripts/bench_tax.py --steps 30 experiment=llm/gpt_shakespeare model=gpt2 data.seq_len=256 \\
      data.global_batch_size=1

Both train the same model from the same weights on the same batches with the same optimiser. Steps alternate within one
process, so that a machine that other people use slows both alike. Prints the median milliseconds of a step of each and
their ratio. Exits with 1 if any loss differs: the ratio would mean nothing.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig

from scaledl import build
from scaledl.config.folders import CONF
from scaledl.data.sampler import TrainBatches
from scaledl.optim.groups import parameter_groups
from scaledl.train import composed, run

SKIPPED = 5  # steps that pay for allocation, left out of both


def bare_loop(config: DictConfig) -> Iterator[torch.Tensor]:
    """A training loop as one would write it by hand; yields the loss of each step."""
    data = build.data(config)
    train_set = data.split("train")
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    model = build.model(config)().to(device)
    model.train()
    optimizer = build.instantiate(config.optimizer)(parameter_groups(model), fused=True)
    scheduler = build.instantiate(config.scheduler)(optimizer)
    parameters = [
        parameter for group in optimizer.param_groups for parameter in group["params"]
    ]  # one order of summing
    for indices in TrainBatches(len(train_set), data.global_batch_size, data.global_batch_size, seed=data.seed):
        batch = {name: tensor.to(device) for name, tensor in train_set.__getitems__(indices).items()}
        loss = model.loss(batch["input_ids"], batch["labels"])  # type: ignore[operator]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.trainer.gradient_clip_val, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        yield loss.detach()


class Beside(pl.Callback):
    """After each step of the framework, one step of the bare loop; the clock of the one stands while the other runs."""

    config: DictConfig
    ours: list[float] = []
    bare: list[float] = []
    gap = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.loop = bare_loop(self.config)
        self.mark = now()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        began = now()
        loss = next(self.loop)
        ended = now()
        self.ours.append(began - self.mark)
        self.bare.append(ended - began)
        Beside.gap = max(self.gap, abs(float(loss - pl_module.step_metrics["loss"])))
        self.mark = now()


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+")
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    import bench_tax  # this file again, under the name by which the config calls it

    with tempfile.TemporaryDirectory() as folder:
        fixed = [f"trainer.max_steps={arguments.steps}", f"runs_dir={folder}", "~callbacks.samples"]
        never = [f"trainer.val_check_interval={arguments.steps + 1}", f"checkpoint.every_n_steps={arguments.steps + 1}"]
        beside = ["callbacks.beside._target_=bench_tax.Beside", "trainer.limit_val_batches=1"]
        config = composed([*arguments.overrides, *fixed, *never, *beside], [CONF], ["bench_tax"])
        bench_tax.Beside.config = config
        with contextlib.redirect_stdout(io.StringIO()):
            run(config)
    ours, bare = bench_tax.Beside.ours[SKIPPED:], bench_tax.Beside.bare[SKIPPED:]
    tax = statistics.median(ours) / statistics.median(bare)
    paired = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    print(f"bare    {statistics.median(bare) * 1e3:9.3f} ms/step (median of {len(bare)})")
    print(f"scaledl {statistics.median(ours) * 1e3:9.3f} ms/step")
    print(f"ratio of the medians {tax:.4f}, median ratio of the pairs {paired:.4f}")
    print(f"largest difference of a loss: {bench_tax.Beside.gap:.1e}")
    sys.exit(bench_tax.Beside.gap > 0)


if __name__ == "__main__":
    main()
