"""Evaluate a run's checkpoint on its own validation data, or a language model on any text file."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig
from rich.console import Console

from scaledl import build, checkpoint, run_directory
from scaledl.config.rules import broken_rules
from scaledl.config.schema import Root
from scaledl.config.validate import ALLOWED, ConfigError, validate
from scaledl.data.base import Data
from scaledl.tables import metrics_table
from scaledl.tasks.base import Task
from scaledl.train import quiet


def evaluate(run_dir: Path, which: str, text: Path | None, allowed: list[str]) -> dict[str, float]:
    """Metrics of the chosen checkpoint; prints them as a table.

    Args:
        which: `best`, `last` or a step.
        text: a text file to read instead of the run's own validation split.
    """
    quiet()
    task, data, config, chosen = load_run(run_dir, which, allowed, with_data=text is None)
    if text is not None:
        data.read_instead(text, run_dir)
    trainer = pl.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        precision=config.precision,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    metrics: dict[str, float] = {}
    for split, measure in (("val", trainer.validate), ("test", trainer.test)):
        if data.split(split) is not None:
            measure(task, datamodule=data, verbose=False)
            metrics |= {name: value.item() for name, value in trainer.callback_metrics.items()}
    Console().print(metrics_table({"checkpoint": str(chosen), "text": str(text or "")}, metrics))
    return metrics


def valid_config(run_dir: Path, allowed: list[str]) -> DictConfig:
    """The config of a run directory, which may come from a stranger: it is validated like one that was typed."""
    config = run_directory.load_config(run_dir)
    run_directory.own_tokenizer(config, run_dir)
    problems = [*validate(config, Root, build.PROVIDED, (*ALLOWED, *allowed)), *broken_rules(config)]
    if problems:
        raise ConfigError(problems)
    return config


def load_run(run_dir: Path, which: str, allowed: list[str], with_data: bool) -> tuple[Task, Data, DictConfig, Path]:
    """The task of a run with a checkpoint's weights, its data and its config, and which checkpoint it is.

    Args:
        with_data: bring the data onto this machine too.
    """
    chosen = checkpoint.choose(run_dir, which)
    config = valid_config(run_dir, allowed)
    data = build.data(config) if with_data else build.instantiate(config.data)
    task = build.task(config, build.model(config))
    task.configure_model()
    task.load_state_dict(checkpoint.load_model_weights(chosen))
    return task.eval(), data, config, chosen
