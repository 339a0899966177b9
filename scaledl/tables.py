"""The table at the start of a run and the one at its end."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from omegaconf import DictConfig
from rich.table import Table

from scaledl.checkpoint import step_of
from scaledl.data.base import Data


def start_table(
    config: DictConfig, data: Data, num_parameters: int, trainer: pl.Trainer, resumed: Path | None
) -> Table:
    """What will run: model, data, batch, devices, directory."""
    sizes = {name: len(split) for name, split in data.splits()}
    model = str(config.model["_target_"]).rpartition(".")[2]
    steps = trainer.max_steps
    epochs = steps * data.global_batch_size / sizes["train"]
    ranks = f"{data.world_size} rank{'s' * (data.world_size > 1)}"
    batch = f"{data.global_batch_size} = {data.micro_batch_size} x {ranks} x {data.accumulation} accumulated"
    strategy = trainer.strategy.strategy_name  # type: ignore[attr-defined]
    rows = {
        "experiment": config.experiment,
        "model": f"{model}, {num_parameters:,} parameters",
        "data": f"{data.describe()}; " + ", ".join(f"{count:,} {name}" for name, count in sizes.items()),
        "batch": batch,
        "length": f"{steps:,} steps, {epochs:.3g} epochs",
        "devices": f"{trainer.world_size} x {trainer.strategy.root_device.type}, {strategy}, {config.precision}",
        "run directory": config.run_dir,
    }
    if config.get("federation"):
        clients = f"{config.federation.num_clients} clients, {config.federation.local_epochs} local epochs a round"
        rows |= {"batch": f"{data.global_batch_size} of a client", "length": f"{steps:,} rounds; {clients}"}
    if resumed:
        rows["goes on from"] = f"step {step_of(resumed):,}"
    return facts_table("scaledl train", rows)


def final_table(summary: dict[str, Any], run_dir: Path, title: str) -> Table:
    """What came out."""
    rows = {
        name: "not finite" if value is None else f"{value:.4f}"
        for name, value in summary["metrics"].items()
        if name.startswith(("baseline/", "val/", "test/"))
    }
    if summary["best"]:
        rows["best"] = "{metric} {value:.4f} at step {step:,}".format(**summary["best"])
    speed = {name: value for name, value in summary["throughput"].items() if value}
    rows["speed"] = ", ".join(f"{value:,.0f} {name.replace('_per_second', '/s')}" for name, value in speed.items())
    rows["time"] = f"{summary['total_seconds']:.0f} s in all, {summary['train_seconds'] or 0:.0f} s of training steps"
    rows["run directory"] = str(run_dir)
    return facts_table(title, rows)


def facts_table(title: str, rows: dict[str, Any]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def metrics_table(about: dict[str, str], metrics: dict[str, float]) -> Table:
    shown = {name: value for name, value in about.items() if value}
    return facts_table("scaledl evaluate", shown | {name: f"{value:.4f}" for name, value in metrics.items()})
