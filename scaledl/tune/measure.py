"""What one size of micro-batch costs: a few steps, in a process that memory which has run out may take along."""

import json
import os
import resource
import sys
from pathlib import Path

import torch
from omegaconf import open_dict

from scaledl import atomic, build
from scaledl.callbacks.throughput import Throughput
from scaledl.callbacks.watchdog import HangWatchdog
from scaledl.distributed import group
from scaledl.train import checked, composed, quiet

WARM_UP, MOST_PASSES = 2, 4  # optimiser steps that are not timed; micro-batches of a step, for time's sake


def measure(words: list[str], folders: list[Path], allowed: list[str], size: int, num_steps: int, result: Path) -> None:
    """Train with micro-batches of `size`; rank 0 writes samples a second and the most memory of a rank to `result`."""
    quiet()
    config = composed(words, folders, allowed)
    together = config.strategy.get("tensor_parallel_size", 1)
    ranks = max(1, group.world_size() // together)
    passes = min(MOST_PASSES, config.data.global_batch_size // (size * ranks))
    with open_dict(config):
        config.federation = None
        config.data.micro_batch_size, config.data.global_batch_size = size, size * ranks * passes
        config.trainer.max_steps, config.trainer.max_epochs = WARM_UP + num_steps, -1
    data, task, strategy, _ = checked(config)
    if group.world_size() > 1:
        group.join()
    clock = Throughput(skip_steps=WARM_UP)
    trainer = build.trainer(config, result.parent, data, strategy, instead=[clock, HangWatchdog()])
    trainer.fit(task, datamodule=data)
    most, there = _memory()
    most = float(trainer.strategy.reduce(torch.tensor(float(most), device=strategy.root_device), reduce_op="max"))
    if group.rank() == 0:
        found = {"samples_per_second": clock.rates["samples_per_second"], "memory": most, "memory_there": there}
        atomic.write_text(result, json.dumps(found))


def _memory() -> tuple[int, int]:
    """The most bytes that this process has taken, and how many there are: of the GPU, else of the host."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return taken, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // group.ranks_per_node()
