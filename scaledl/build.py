"""From a validated config to objects; the only file that instantiates."""

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig

from scaledl.callbacks.checkpoint import Checkpoint
from scaledl.checkpoint import CheckpointFolders
from scaledl.data.base import Data
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.loggers.jsonl import JsonlLogger
from scaledl.tasks.base import Task

# Arguments that code passes itself, by the node that a config therefore need not give them for.
PROVIDED = {"task": ("model", "optimizer", "scheduler")}


def instantiate(node: DictConfig, **arguments: Any) -> Any:
    try:
        return hydra_instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        raise error.__cause__ or error from None  # what the constructor said, without Hydra's words around it


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def data(config: DictConfig) -> Data:
    """The data, brought onto this machine; what it found out about itself is written into `config.data`."""
    built: Data = instantiate(config.data)
    built.rank, built.world_size = int(os.environ.get("RANK", 0)), world_size()
    built.prepare()
    for name, fact in built.facts().items():
        config.data[name] = fact
    return built


def settle_steps(config: DictConfig, num_samples: int) -> None:
    """Write the number of optimiser steps into `trainer.max_steps` where only `max_epochs` was given."""
    trainer = config.trainer
    if trainer.max_steps < 0:
        trainer.max_steps = math.ceil(trainer.max_epochs * num_samples / config.data.global_batch_size)


def model(config: DictConfig) -> ModelBuilder:
    return ModelBuilder(
        make=partial(instantiate, config.model),
        seed=config.seed,
        compile=config.compile,
        activation_checkpointing=config.activation_checkpointing,
    )


def task(config: DictConfig, model: ModelBuilder) -> Task:
    optimizer = instantiate(config.optimizer)
    scheduler = instantiate(config.scheduler) if config.scheduler else None
    return instantiate(config.task, model=model, optimizer=optimizer, scheduler=scheduler)


def trainer(config: DictConfig, run_dir: Path, accumulation: int) -> pl.Trainer:
    """Lightning's trainer over one endless epoch: the order of the data counts epochs itself."""
    callbacks = [instantiate(node) for node in config.callbacks.values() if node]
    callbacks.append(instantiate(config.checkpoint))
    for callback in callbacks:
        if hasattr(callback, "run_dir"):
            callback.run_dir = run_dir
    loggers = [JsonlLogger(run_dir / "metrics.jsonl")]
    loggers += [instantiate(node) for node in (config.logger or {}).values() if node]
    return instantiate(
        config.trainer,
        max_epochs=-1,
        val_check_interval=config.trainer.val_check_interval * accumulation,
        check_val_every_n_epoch=None,
        accumulate_grad_batches=accumulation,
        precision=config.precision,
        strategy=instantiate(config.strategy),
        devices=1,
        plugins=[CheckpointFolders()],
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=run_dir,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def checkpoint_of(trainer: pl.Trainer) -> Checkpoint:
    return next(callback for callback in trainer.callbacks if isinstance(callback, Checkpoint))  # type: ignore[attr-defined]
