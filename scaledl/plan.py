"""`scaledl plan`: memory, time and cost of a training on devices that one does not have yet."""

import json
import math
import tempfile
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, open_dict
from rich.console import Console
from rich.table import Table
from torch import Tensor

from scaledl import atomic, build
from scaledl.config.compose import compose
from scaledl.config.folders import options
from scaledl.config.rules import micro_batch_of
from scaledl.config.validate import ConfigError
from scaledl.flops import flops_of_sample, longest_sample, usual_sample, utilization
from scaledl.hardware import Device, device
from scaledl.planning.choose import Row, fits, largest_that_fits, recommended
from scaledl.planning.memory import Layout, Memory, layout_of, memory_of
from scaledl.planning.simulation import Masters, Simulation, simulate, simulate_optimizer
from scaledl.planning.time import time_of
from scaledl.tables import facts_table
from scaledl.tasks.base import Task
from scaledl.train import composed, quiet
from scaledl.tune.measure import host_memory

DAY = 86_400
_SIMPLEST = ("single", "ddp", "fsdp")  # shown, and of equals chosen, before the others
_PARTS = ["weights", "grads", "optim", "acts", "buffers", "total", "fits", "batch", "at most"]
_IF_KNOWN = {"mfu": ".1%", "days": ".2g", "cost": ",.0f"}


@dataclass
class Cluster:
    """The devices that a plan is for."""

    gpus: int
    device: Device
    price: float | None = None  # of a device and hour

    @classmethod
    def of(
        cls, gpus: int, name: str, gpus_per_node: int | None, inter_node: float | None, price: float | None
    ) -> "Cluster":
        """Raises ValueError for a device that is not known."""
        if name == "cpu":
            here = Device("this machine's processor", {}, host_memory() / gpus, 0, 0, 0, gpus)
            return cls(gpus, here, price)
        found = asdict(device(name))
        found |= {"gpus_per_node": gpus_per_node} if gpus_per_node else {}
        found |= {"inter_node": inter_node * 1e9} if inter_node else {}
        return cls(gpus, Device(**found), price)


class Training:
    """What a config says of a training, as far as it can be known without memory and without devices.

    Raises:
        ConfigError: the config is wrong.
        ValueError: the data must be read to know what is planned.
    """

    def __init__(self, words: list[str], folders: list[Path], allowed: list[str]) -> None:
        self.strategy_words = [word for word in words if word.startswith("strategy")]
        self.words = [word for word in words if not word.startswith("strategy")]
        self.folders = folders
        self.config = composed([*self.words, "strategy=single"], folders, allowed)
        self.sample, self.longest, self.tokens_per_sample = _samples(self.config)
        self.task: Task = build.task(self.config, build.model(self.config))
        self._simulated: dict[tuple, Simulation] = {}
        self._alike = all(self.longest[name].shape == each.shape for name, each in self.sample.items())
        self._optimized: dict[int, Masters] = {}

    @cached_property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.task.model_builder.on_meta().parameters())

    @cached_property
    def flops_per_sample(self) -> int | None:
        return flops_of_sample(self.task, self.sample)

    def simulated(
        self, samples: int, tensor_parallel_size: int = 1, low_weights: bool = False, longest: bool = False
    ) -> Simulation:
        """A micro-batch of samples of mean length, or all as long as the longest."""
        longest = longest and not self._alike
        key = (samples, tensor_parallel_size, low_weights, longest)
        if key not in self._simulated:
            of = self.longest if longest else self.sample
            self._simulated[key] = simulate(
                self.task,
                {name: tensor.expand(samples, *tensor.shape[1:]) for name, tensor in of.items()},
                precision=self.config.precision,
                low_weights=low_weights,
                tensor_parallel_size=tensor_parallel_size,
                checkpointing=self.config.activation_checkpointing,
            )
        return self._simulated[key]

    def layouts(self, cluster: Cluster) -> list[Layout]:
        """Of the strategy that the words name, else of every strategy that so many devices can have."""
        named = next((word.partition("=")[2] for word in self.strategy_words if word.startswith("strategy=")), None)
        found = []
        for name in [named] if named else sorted(options("strategy", self.folders), key=_place):
            for more in _sizes(name, cluster) if named is None else [[]]:
                config, problems = compose([*self.words, f"strategy={name}", *self.strategy_words, *more], self.folders)
                if problems:
                    raise ConfigError(problems)
                size = config.strategy.get("tensor_parallel_size", 1)
                of = layout_of(
                    f"{name} {size}" if size > 1 else name, config.strategy, cluster.gpus, cluster.device.gpus_per_node
                )
                if of is not None and not any(_same(of, other) for other in found):
                    found.append(of)
        if not found:
            raise ValueError(
                f"{' '.join(self.strategy_words)} cannot divide {cluster.gpus} devices; take a multiple of its sizes"
            )
        return found

    def row(self, layout: Layout, cluster: Cluster) -> Row:
        """What one strategy comes to, with the config's micro-batch or, where that does not fit, the largest that does.

        Raises:
            ValueError: the model cannot be divided so.
        """
        data, room = self.config.data, cluster.device.memory
        ranks, batch, note, note_micro = layout.data_ranks, data.global_batch_size, "", ""
        if batch % ranks:
            batch = math.ceil(batch / ranks) * ranks
            note = f"data.global_batch_size={batch}, for {ranks} ranks"
        share = batch // ranks
        micro = micro_batch_of(share, data.micro_batch_size)
        masters, passed = partial(self._masters, layout), partial(self._passed, layout)

        def memory_at(samples: int) -> Memory:
            return memory_of(
                layout,
                passed(samples, longest=True),
                masters(),
                accumulation=share // samples,
                average=self.keeps_average,
                on_host=not cluster.device.flops,
            )

        row_memory = memory_at(micro)
        largest = largest_that_fits(row_memory, micro, room, share)
        while not fits(row_memory, room) and micro > 1:
            micro = micro_batch_of(share, max(1, min(micro // 2, largest)))
            row_memory = memory_at(micro)
            note_micro = f"data.micro_batch_size={micro}, to fit"
        note = "; ".join(filter(None, [note, note_micro]))
        row = Row(layout, micro, share // micro, batch, row_memory, room, largest, note=note)
        if cluster.device.flops:
            row.time = time_of(
                layout,
                passed(micro),
                masters(),
                cluster.device,
                accumulation=row.accumulation,
                compiled=self.config.compile,
                tf32=self.tf32,
            )
        return row

    @property
    def keeps_average(self) -> bool:
        return any(node and node["_target_"].endswith(".EMA") for node in self.config.callbacks.values())

    @property
    def tf32(self) -> bool:
        return torch.get_float32_matmul_precision() != "highest"

    def _masters(self, layout: Layout) -> Masters:
        size = layout.tensor_parallel
        if size not in self._optimized:
            self._optimized[size] = simulate_optimizer(self.task, self.config.precision, size)
        return self._optimized[size]

    def _passed(self, layout: Layout, samples: int, longest: bool = False) -> Simulation:
        """With the weights as `layout` computes with them: ZeRO and FSDP have them in bf16 under mixed precision."""
        low = layout.kind == "zero" and self.config.precision != "32-true"
        low |= layout.kind == "fsdp" and self.config.precision == "bf16-mixed"
        return self.simulated(samples, layout.tensor_parallel, low, longest)


def plan(
    words: list[str],
    folders: list[Path],
    allowed: list[str],
    cluster: Cluster,
    tokens: float | None = None,
    output: Path | None = None,
) -> list[Row]:
    """Print what every strategy comes to, and which one is recommended; write it as JSON where `output` says.

    Args:
        tokens: to train on; null = what the config's steps come to.
    """
    quiet()
    training = Training(words, folders, allowed)
    rows, refused = [], {}
    for layout in training.layouts(cluster):
        try:
            rows.append(training.row(layout, cluster))
        except ValueError as error:
            refused[layout.name] = str(error)
    if not rows:
        raise ValueError(next(iter(refused.values())))
    best, reason = recommended(rows)
    samples = _samples_to_train(training, tokens)
    found = {
        "num_parameters": training.num_parameters,
        "flops_per_sample": training.flops_per_sample,
        "tokens_per_sample": training.tokens_per_sample or None,
        "samples": samples,
        "gpus": cluster.gpus,
        "device": cluster.device.name,
        "recommended": best.layout.name if best else None,
        "reason": reason,
        "strategies": [_facts(row, training, cluster, samples) for row in rows],
        "refused": refused,
    }
    _show(found, training, best)
    if output is not None:
        atomic.write_text(output, json.dumps(found, indent=2) + "\n")
    return rows


def _samples(config: DictConfig) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """A training sample of mean length and the longest, of which only shapes matter, and the mean of their tokens.

    Text of a given vocabulary is known without reading it. What is not known must come with Python or a library: it is
    prepared in a folder that is gone afterwards.
    """
    text = config.data["_target_"].endswith(".TextData")
    if text and config.data.vocab_size is not None:
        length = config.data.seq_len
        ids = torch.zeros(1, length, dtype=torch.int64)
        ids_by_name = {"input_ids": ids, "labels": ids} | ({"document_ids": ids} if config.data.document_mask else {})
        return ids_by_name, ids_by_name, length
    if text and (config.data.path or config.data.dataset):
        raise ValueError(
            "a plan reads no data, and how many tokens there are is known only from it: set data.vocab_size=..."
        )
    with tempfile.TemporaryDirectory() as scratch:
        if "cache_dir" in config.data:
            with open_dict(config):
                config.data.cache_dir = scratch
        data = build.data(config)
        train = data.split("train")
        assert train is not None
        build.settle_steps(config, len(train))
        usual, longest = (
            {name: tensor.clone() for name, tensor in of.items()} for of in (usual_sample(train), longest_sample(train))
        )
        return usual, longest, data.tokens_per_sample


def _sizes(name: str, cluster: Cluster) -> list[list[str]]:
    """The sizes of tensor parallel groups that stay in a node."""
    if name != "tp":
        return [[]]
    within = min(cluster.gpus, cluster.device.gpus_per_node)
    return [[f"strategy.tensor_parallel_size={size}"] for size in (2, 4, 8) if size <= within]


def _place(strategy: str) -> tuple[int, str]:
    return _SIMPLEST.index(strategy) if strategy in _SIMPLEST else len(_SIMPLEST), strategy


def _same(one: Layout, other: Layout) -> bool:
    return {**asdict(one), "name": ""} == {**asdict(other), "name": ""}


def _samples_to_train(training: Training, tokens: float | None) -> float | None:
    if tokens is not None:
        if not training.tokens_per_sample:
            raise ValueError("--tokens: this data is not made of tokens; its length is trainer.max_steps")
        return tokens / training.tokens_per_sample
    steps = training.config.trainer.max_steps
    return steps * training.config.data.global_batch_size if steps > 0 else None


def _facts(row: Row, training: Training, cluster: Cluster, samples: float | None) -> dict[str, Any]:
    rate = row.samples_per_second
    peak = cluster.device.peak(training.config.precision, training.tf32)
    days = samples / rate / DAY if samples and rate else None
    return {
        "strategy": row.layout.name,
        "fits": row.fits,
        "memory": {**asdict(row.memory), "total": row.memory.total},
        "micro_batch_size": row.micro_batch_size,
        "accumulation": row.accumulation,
        "global_batch_size": row.global_batch_size,
        "largest_micro_batch_size": row.largest_micro_batch,
        "step_seconds": {**asdict(row.time), "total": row.time.total} if row.time else None,
        "samples_per_second": rate,
        "tokens_per_second": rate * training.tokens_per_sample if rate and training.tokens_per_sample else None,
        "mfu": utilization(training.flops_per_sample, rate, peak * cluster.gpus if peak else None),
        "days": days,
        "cost": days * 24 * cluster.gpus * cluster.price if days and cluster.price else None,
        "note": row.note,
    }


def _show(found: dict[str, Any], training: Training, best: Row | None) -> None:
    console = Console()
    tokens, flops = training.tokens_per_sample, training.flops_per_sample
    facts = {
        "parameters": f"{found['num_parameters']:,}",
        "devices": f"{found['gpus']} x {found['device']}",
        "precision": training.config.precision,
        "activation checkpointing": training.config.activation_checkpointing,
    }
    if flops:
        each = f"{flops / (tokens or 1):.4g} a {'token' if tokens else 'sample'}"
        facts["FLOPs"] = f"{each}, forward and backward"
    if found["samples"]:
        length = found["samples"]
        facts["length"] = f"{length * tokens:,.0f} tokens" if tokens else f"{length:,.0f} samples"
    console.print(facts_table("scaledl plan", facts))
    rows = found["strategies"]
    styles = ["bold" if best and row["strategy"] == best.layout.name else "" for row in rows]
    memory = _table("GiB of a device, and its micro-batch", _PARTS)
    for style, row in zip(styles, rows, strict=True):
        sizes = [f"{size / 2**30:.2f}" for size in row["memory"].values()]
        samples = [str(row[f"{which}micro_batch_size"]) for which in ("", "largest_")]
        memory.add_row(row["strategy"], *sizes, "yes" if row["fits"] else "no", *samples, style=style)
    console.print(memory)
    if rows[0]["step_seconds"]:
        unit = "tokens" if tokens else "samples"
        time = _table("time", ["s a step", "GiB sent", f"{unit}/s", f"{unit}/day", "MFU", "days", "cost"])
        for style, row in zip(styles, rows, strict=True):
            seconds, rate = row["step_seconds"], row[f"{unit}_per_second"]
            numbers = [f"{seconds['total']:.2g}", f"{seconds['sent'] / 2**30:.3g}", f"{rate:,.0f}", f"{rate * DAY:.3g}"]
            known = [f"{row[key]:{form}}" if row[key] else "" for key, form in _IF_KNOWN.items()]
            time.add_row(row["strategy"], *numbers, *known, style=style)
        console.print(time)
    notes: dict[str, list[str]] = {}
    for row in rows:
        notes.setdefault(row["note"], []).append(row["strategy"])
    for note, whose in notes.items():
        if note:
            console.print(f"{note}: {', '.join(whose)}", highlight=False)
    for name, reason in found["refused"].items():
        console.print(f"{name}: {reason}", highlight=False)
    chosen = f"strategy={found['recommended']}: " if found["recommended"] else ""
    console.print(chosen + found["reason"], highlight=False)


def _table(title: str, columns: list[str]) -> Table:
    table = Table("strategy", title=f"\n{title}", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
