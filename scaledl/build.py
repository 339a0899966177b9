"""From a validated config to objects; the only file that instantiates."""

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, open_dict
from torch import nn

from scaledl.callbacks.checkpoint import Checkpoint
from scaledl.callbacks.init_from import InitFrom
from scaledl.callbacks.preemption import Preemption
from scaledl.callbacks.test import BestOnTest
from scaledl.config.rules import micro_batch_of
from scaledl.data.base import BatchDataset, Data
from scaledl.distributed import group
from scaledl.distributed.fsdp import tensor_parallel_plan
from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder, blocks_of
from scaledl.distributed.state import RunState
from scaledl.federated.fedavg import FedAvg
from scaledl.layers.lora import is_adapted
from scaledl.loggers.jsonl import JsonlLogger
from scaledl.optim.groups import needs_of
from scaledl.tasks.base import Task

# Arguments that code passes itself, by the node that a config therefore need not give them for.
PROVIDED = {
    "task": ("model", "optimizer", "scheduler"),
    "trainer": (
        "accelerator",
        "strategy",
        "devices",
        "num_nodes",
        "precision",
        "logger",
        "callbacks",
        "plugins",
        "accumulate_grad_batches",
        "check_val_every_n_epoch",
        "default_root_dir",
        "num_sanity_val_steps",
        "use_distributed_sampler",
        "enable_checkpointing",
        "enable_progress_bar",
        "enable_model_summary",
    ),
}


def instantiate(node: DictConfig, **arguments: Any) -> Any:
    try:
        return hydra_instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        raise error.__cause__ or error from None  # what the constructor said, without Hydra's words around it


def data(config: DictConfig) -> Data:
    """The data, brought onto this machine; what it found out about itself is written into `config.data`."""
    built: Data = instantiate(config.data)
    together = config.strategy.get("tensor_parallel_size", 1)  # so many ranks compute the same samples
    if config.get("federation"):  # whose clients' batches are not shared out
        together = group.world_size()
    built.rank, built.world_size = group.rank() // together, group.world_size() // together
    share = built.global_batch_size // built.world_size
    built.micro_batch_size = micro_batch_of(share, built.micro_batch_size)
    built.prepare()
    with open_dict(config):
        config.data.update(built.facts())
    return built


def settle_steps(config: DictConfig, num_samples: int) -> None:
    """Write the number of optimiser steps into `trainer.max_steps` where `max_epochs` was given."""
    trainer = config.trainer
    if trainer.max_steps < 0:
        trainer.max_steps = math.ceil(trainer.max_epochs * num_samples / config.data.global_batch_size)
        trainer.max_epochs = -1


def model(config: DictConfig) -> ModelBuilder:
    return ModelBuilder(
        make=partial(instantiate, config.model),
        seed=config.seed,
        compile=config.compile,
        activation_checkpointing=config.activation_checkpointing,
        adapt=instantiate(config.lora) if config.get("lora") else None,
    )


def task(config: DictConfig, model: ModelBuilder) -> Task:
    optimizer = instantiate(config.optimizer)
    scheduler = instantiate(config.scheduler) if config.scheduler else None
    return instantiate(config.task, model=model, optimizer=optimizer, scheduler=scheduler)


def strategy(config: DictConfig) -> RunState:
    return instantiate(config.strategy)


def federation(config: DictConfig) -> FedAvg | None:
    return instantiate(config.federation) if config.get("federation") else None


def trainer(
    config: DictConfig,
    run_dir: Path,
    data: Data,
    strategy: RunState,
    begin: InitFrom | None = None,
    instead: list[pl.Callback] | None = None,
) -> pl.Trainer:
    """Lightning's trainer over one endless epoch: the order of the data counts epochs itself.

    Args:
        instead: of the config's callbacks, for a training that is tried out: none logs, evaluates or saves then.
    """
    callbacks: list[Any] = [begin] if begin else []  # before those that look at weights
    if instead is None:
        callbacks += [instantiate(node) for node in config.callbacks.values() if node]
        callbacks += [instantiate(config.checkpoint), BestOnTest()]
    else:
        callbacks += instead
    callbacks.sort(key=lambda callback: isinstance(callback, Preemption))  # last: what it stops is logged and saved
    for callback in callbacks:
        if hasattr(callback, "run_dir"):
            callback.run_dir = run_dir
    val_set, limit = data.split("val"), config.trainer.limit_val_batches
    validates = val_set is not None and limit != 0 and instead is None
    if val_set is not None:  # Lightning's own limit is for each rank
        share = max(1, int(limit * -(-len(val_set) // data.eval_batch_size)))
        data.limit_val_batches = limit if isinstance(limit, int) else share
    loggers: list[Any] = []
    if instead is None:
        loggers = [JsonlLogger(run_dir / "metrics.jsonl")]
        loggers += [instantiate(node) for node in (config.logger or {}).values() if node]
    return instantiate(
        config.trainer,
        max_epochs=-1,
        val_check_interval=config.trainer.val_check_interval * (1 if config.get("federation") else data.accumulation),
        limit_val_batches=1.0 if validates else 0,
        check_val_every_n_epoch=None,
        accumulate_grad_batches=data.accumulation,
        precision=config.precision,
        strategy=strategy,
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=group.ranks_per_node(),
        num_nodes=group.world_size() // group.ranks_per_node(),
        plugins=[group.environment()],
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=run_dir,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def check_fit(config: DictConfig, task: Task, train_set: BatchDataset) -> None:
    """Run the objective on one sample without memory, to see that model, task and data fit.

    Raises:
        ValueError: they do not; shapes or names are in the message.
    """
    for ours, theirs in (("vocab_size", "vocab_size"), ("max_seq_len", "seq_len")):
        have, need = config.model.get(ours), config.data.get(theirs)
        if have is not None and need is not None and have < need:
            raise ValueError(
                f"model.{ours}={have} is less than data.{theirs}={need}; the model must hold what it reads"
            )
    batch = {name: tensor.to("meta") for name, tensor in train_set.__getitems__(np.arange(1)).items()}
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in batch.items())
    task.model = task.model_builder.on_meta().eval()
    task.noise = Noise(config.seed, torch.zeros(1, dtype=torch.int64, device="meta"))
    try:
        task.objective(batch)
    except NotImplementedError:  # an operation that needs values, which the meta device does not have
        pass
    except KeyError as error:
        raise ValueError(f"{type(task).__name__} needs {error} in a batch, but this data gives {shapes}") from error
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{type(task.model).__name__} does not fit a sample of this data ({shapes}): {reason}"
        ) from error
    finally:
        task.model = None  # type: ignore[assignment]


def check_served(task: Task, strategy: RunState, data: Data) -> None:
    """Whether the strategy can do what the task and its model need.

    Raises:
        ValueError: it cannot; the reason is in the message.
    """
    name = strategy.strategy_name
    if "whole_batch" in task.needs and data.accumulation > 1:
        share = data.global_batch_size // data.world_size
        raise ValueError(
            f"{type(task).__name__} compares all samples of a global batch, but each rank takes its {share} in "
            f"{data.accumulation} micro-batches, which do not see one another: set data.micro_batch_size to {share} or "
            "more, take more ranks or a smaller data.global_batch_size"
        )
    for who, needs in ((type(task).__name__, task.needs), ("this optimizer", needs_of(task.make_optimizer))):
        for need in needs:
            if need in strategy.cannot:
                raise ValueError(
                    f"strategy={name} cannot serve {who}, which needs {need.replace('_', ' ')}: "
                    f"{strategy.cannot[need]}; strategy=ddp can"
                )
    model = task.model_builder.on_meta()
    if strategy.tensor_parallel_size > 1 and is_adapted(model):
        raise ValueError(
            f"strategy={name} cannot serve lora, which needs whole matrices: tensor parallelism divides those "
            "that it adds to; strategy=fsdp can"
        )
    if strategy.tensor_parallel_size > 1:
        for block in blocks_of(model) or [model]:
            tensor_parallel_plan(block, strategy.tensor_parallel_size)
    idle = torch.cuda.device_count() - group.ranks_per_node()
    if idle > 0 and group.rank() == 0:
        warnings.warn(
            f"{idle} of this machine's GPUs are not used; torchrun --nproc-per-node {torch.cuda.device_count()} -m "
            "scaledl train ... strategy=ddp (or fsdp, deepspeed_2) uses all",
            stacklevel=2,
        )
    batch_norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if batch_norms and group.world_size() > 1 and group.rank() == 0:
        warnings.warn(
            f"{len(batch_norms)} BatchNorm layers take the statistics of one rank's micro-batch, so this run's numbers "
            "depend on its ranks; other norms do not",
            stacklevel=2,
        )


def checkpoint_of(trainer: pl.Trainer) -> Checkpoint:
    return next(callback for callback in trainer.callbacks if isinstance(callback, Checkpoint))  # type: ignore[attr-defined]
