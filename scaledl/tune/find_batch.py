"""`scaledl find-batch`: how many samples a forward pass can take, and with how many it is fastest."""

import json
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from scaledl import atomic
from scaledl.callbacks.predictions import save
from scaledl.config.rules import micro_batch_of
from scaledl.distributed import group
from scaledl.loggers.lines import read
from scaledl.train import composed
from scaledl.tune import trial
from scaledl.tune.size import Size, best

NO_MEMORY = "out of memory"
_ITS_SIGNS = (NO_MEMORY, "OutOfMemoryError", "can't allocate memory", "not enough memory")


def find_batch(words: list[str], folders: list[Path], allowed: list[str], num_steps: int) -> int:
    """Try data.micro_batch_size of 1, 2, 4, ... up to a rank's share; the suggested one, also in the run's directory.

    The global batch, and with it every number of the run, stays what it is: only its split into passes changes.

    Raises:
        ConfigError: the config is wrong.
        ValueError: no size runs; the reason of the first is given.
    """
    config = composed(words, folders, allowed)
    wanted, board = sizes(config), trial.board()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # which ends the process below, too
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "sizes.jsonl"
        command = [sys.executable, "-m", "scaledl", "find-batch", "--steps", str(num_steps), "--result", str(result)]
        command += [word for size in wanted for word in ("--measure", str(size))]
        command += [word for folder in folders[:-1] for word in ("--config-dir", str(folder))]  # the last is ours
        command += [word for package in allowed for word in ("--allow", package)]
        ended = trial.run([*command, *words], "find_batch", board, Path(scratch) / "output.txt")
        if group.rank() == 0:
            board.set("find_batch/found", json.dumps(read(result)))
    tried = [Size(**each) for each in json.loads(board.get("find_batch/found"))]
    left = [size for size in wanted if size not in {each.size for each in tried}]
    if left:
        tried.append(Size(left[0], reason=_reason(ended)))
    chosen = best(tried)
    if group.rank() == 0:
        _write(Path(config.run_dir), tried, chosen, config)
    return chosen


def sizes(config: DictConfig) -> list[int]:
    """Powers of two, or what near to them divides a rank's share of the global batch, and the whole share."""
    ranks = max(1, group.world_size() // config.strategy.get("tensor_parallel_size", 1))
    share = config.data.global_batch_size // (1 if config.get("federation") else ranks)
    powers = [2**power for power in range(share.bit_length())]
    return sorted({micro_batch_of(share, size) for size in [*powers, share]})


def _reason(ended: trial.Ended) -> str:
    """Why the sizes after the last one that ran did not."""
    if ended.code == 0:
        return "not tried: it may take twice the memory of the size before, which is not there"
    if ended.code == -signal.SIGKILL or any(sign in ended.words for sign in _ITS_SIGNS):
        return NO_MEMORY
    lines = [line for line in ended.words.splitlines() if line.strip()]
    said = [line.removeprefix("scaledl: ") for line in lines if line.startswith("scaledl: ")] or lines[-1:]
    return (said or [f"exit code {ended.code}"])[-1]


def _write(run_dir: Path, tried: list[Size], chosen: int, config: DictConfig) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    result = {"suggestion": chosen, "tried": [asdict(each) for each in tried]}
    atomic.write_text(run_dir / "batch_finder.json", json.dumps(result, indent=2) + "\n")
    save(_figure(tried, chosen), run_dir, "batch_finder.png")
    table = Table("micro-batch", "samples/s", "memory of a rank", "", title="scaledl find-batch", title_justify="left")
    for each in tried:
        speed = f"{each.samples_per_second:,.0f}" if each.samples_per_second else ""
        memory = f"{each.memory / 2**20:,.0f} of {each.memory_there / 2**20:,.0f} MiB" if each.memory else ""  # type: ignore[operator]
        table.add_row(str(each.size), speed, memory, each.reason or "suggested" * (each.size == chosen))
    console = Console()
    console.print(table)
    console.print(f"data.micro_batch_size={chosen} (config: {config.data.micro_batch_size})", highlight=False)
    if not tried[-1].reason:
        console.print(
            "the whole share of a rank fits; data.global_batch_size could be larger, but then it trains otherwise"
        )
    console.print(str(run_dir / "plots" / "batch_finder.png"))


def _figure(tried: list[Size], chosen: int) -> Figure:
    ran = [each for each in tried if each.samples_per_second]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([e.size for e in ran], [e.samples_per_second for e in ran], marker="o", label="samples a second")
    axes.axvline(chosen, color="tab:green", linestyle="--", label=f"suggestion: {chosen}")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="data.micro_batch_size", ylabel="samples a second, all ranks", ylim=(0, None))
    memory = axes.twinx()
    memory.plot([e.size for e in ran], [(e.memory or 0) / 2**20 for e in ran], color="tab:orange", marker="s")
    memory.set_ylabel("most memory of a rank, MiB", color="tab:orange")
    memory.set_ylim(0, None)
    for each in tried:
        if each.reason == NO_MEMORY:
            axes.axvline(each.size, color="tab:red", linestyle=":", label=f"out of memory: {each.size}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return figure
