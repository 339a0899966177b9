"""What sizes of micro-batches cost: a few steps of each, in a process that memory which has run out may take along."""

import gc
import json
import os
import resource
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import open_dict

from scaledl import build
from scaledl.callbacks.throughput import Throughput
from scaledl.callbacks.watchdog import HangWatchdog
from scaledl.distributed import group
from scaledl.train import checked, composed, quiet
from scaledl.tune.size import Size

WARM_UP, MOST_PASSES = 2, 4  # optimiser steps that are not timed; micro-batches of a step, for time's sake


def measure(
    words: list[str], folders: list[Path], allowed: list[str], sizes: list[int], num_steps: int, result: Path
) -> None:
    """Train a little with micro-batches of each size; rank 0 writes a line for each to `result`."""
    quiet()
    for size in sizes:
        try:
            found = _measured(words, folders, allowed, size, num_steps)
        except ValueError as error:  # on all ranks alike
            found = Size(size, reason=str(error))
        if group.rank() == 0:
            with open(result, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(found)) + "\n")
        # On a host, what does not fit slows down everything before it fails.
        if not torch.cuda.is_available() and found.memory and 2 * found.memory > (found.memory_there or 0):
            return
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _measured(words: list[str], folders: list[Path], allowed: list[str], size: int, num_steps: int) -> Size:
    config = composed(words, folders, allowed)
    ranks = max(1, group.world_size() // config.strategy.get("tensor_parallel_size", 1))
    passes = max(1, min(MOST_PASSES, config.data.global_batch_size // (size * ranks)))
    with open_dict(config):
        config.federation = None  # a client trains as one process does
        config.data.micro_batch_size, config.data.global_batch_size = size, size * ranks * passes
        config.trainer.max_steps, config.trainer.max_epochs = WARM_UP + num_steps, -1
    data, task, strategy, _ = checked(config)
    if group.world_size() > 1:
        group.join()
    clock = Throughput(skip_steps=WARM_UP)
    trainer = build.trainer(config, Path(config.run_dir), data, strategy, instead=[clock, HangWatchdog()])
    trainer.fit(task, datamodule=data)
    taken, there = _memory()
    both = torch.tensor([float(taken), -float(there)], device=strategy.root_device)
    most, least = strategy.reduce(both, reduce_op="max").tolist()  # every rank goes on, or ends, as the others do
    return Size(size, clock.rates["samples_per_second"], most, -least)


def _memory() -> tuple[int, int]:
    """The most bytes that this process has taken, and how many there are for it: of the GPU, else of the host."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(
            torch.cuda.current_device()
        ).total_memory
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return taken, host_memory() // group.ranks_per_node()


def host_memory(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of this machine that a process may take: all, or what a container, a Slurm job or a service may have.

    The limits lie in files of Linux's control groups, of version 2 or 1, of this process's group and all above it. A
    container may see its own group in the place of the topmost.
    """
    there = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = groups / ("memory" if controllers else "")
        of_each = [top / path.lstrip("/"), *(top / path.lstrip("/")).parents]
        for folder in of_each[: of_each.index(top) + 1]:
            for name in ("memory.max", "memory.limit_in_bytes"):
                with suppress(OSError, ValueError):  # there is none, or it is "max"
                    there.append(int((folder / name).read_text()))
    return min(there)
