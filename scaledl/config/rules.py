"""Rules between settings that no single signature knows."""

import importlib.util
import os

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException


def broken_rules(config: DictConfig) -> list[str]:
    """What in a config contradicts itself; a setting that is missing or mistyped is validation's to report."""
    problems = []
    if not config.get("data") or not config.get("model") or not config.get("task"):
        return ["nothing to train: choose experiment=<family>/<name> (see `scaledl list`), or data=, model= and task="]
    for rule in (_nodes_have_targets, _batches_divide, _length_given, _strategy_fits, _federation_fits):
        try:
            problems += rule(config)
        except (OmegaConfBaseException, TypeError, AttributeError):
            continue
    return problems


def _nodes_have_targets(config: DictConfig) -> list[str]:
    single = ("data", "model", "task", "optimizer", "scheduler", "strategy", "trainer", "checkpoint", "lora")
    nodes = {group: config.get(group) for group in single}
    for group in ("callbacks", "logger"):
        nodes |= {f"{group}.{name}": node for name, node in (config.get(group) or {}).items()}
    may_be_null = {path for path in nodes if "." in path} | {"scheduler", "lora"}
    return [
        f"{path}: {node!r} is no object; it must name its class as _target_"
        for path, node in nodes.items()
        if not (node is None and path in may_be_null)
        and not (isinstance(node, DictConfig) and isinstance(node.get("_target_"), str))
    ]


def _batches_divide(config: DictConfig) -> list[str]:
    total, micro = config.data.global_batch_size, config.data.micro_batch_size
    ranks = int(os.environ.get("WORLD_SIZE", 1)) // max(1, config.strategy.get("tensor_parallel_size", 1)) or 1
    if config.get("federation"):  # a client's batch stays on one rank
        ranks = 1
    if total < 1 or micro < 1:
        return [f"data.global_batch_size={total} and data.micro_batch_size={micro} must be at least 1"]
    if total % ranks:
        return [
            f"data.global_batch_size={total} cannot be shared by {ranks} ranks: it must be a multiple of {ranks}, such "
            f"as {-(-total // ranks) * ranks}"
        ]
    share = total // ranks
    largest = micro_batch_of(share, micro)
    if largest < min(share, micro) / 2:
        fitting = [m for m in range(micro, share + 1) if share % m == 0][:1]
        return [
            f"data.global_batch_size={total} gives each of {ranks} rank{'s' * (ranks > 1)} {share} samples, which split"
            f" into equal micro-batches of at most data.micro_batch_size={micro} only by {largest}; "
            f"data.micro_batch_size={fitting[0]} would split them"
        ]
    return []


def micro_batch_of(share: int, at_most: int) -> int:
    """The largest size, up to `at_most`, of equal micro-batches that make up a rank's share of the global batch."""
    return next(size for size in range(min(share, at_most), 0, -1) if share % size == 0)


def _length_given(config: DictConfig) -> list[str]:
    trainer = config.trainer
    if trainer.max_steps < 0 and trainer.max_epochs < 0:
        return ["no end to the training is given: set trainer.max_steps or trainer.max_epochs"]
    if trainer.max_steps >= 0 and trainer.max_epochs >= 0:
        return [
            f"trainer.max_steps={trainer.max_steps} and trainer.max_epochs={trainer.max_epochs} both end the training; "
            "set one of them to -1"
        ]
    if config.seed < 0:
        return [f"seed={config.seed}: give a number from 0 up"]
    if not isinstance(trainer.val_check_interval, int):
        return [f"trainer.val_check_interval={trainer.val_check_interval}: give a whole number of optimiser steps"]
    if trainer.val_check_interval < 1:
        return [
            f"trainer.val_check_interval={trainer.val_check_interval}: give a number of optimiser steps, at least 1"
        ]
    return []


def _strategy_fits(config: DictConfig) -> list[str]:
    tasks = os.environ.get("SLURM_NTASKS", 1) if "SLURM_PROCID" in os.environ else 1
    ranks = int(os.environ.get("WORLD_SIZE", tasks))
    target = config.strategy.get("_target_", "")
    if ranks > 1 and target.endswith(".Single"):
        return [
            f"strategy=single is one process, but the launcher started {ranks}; start one, or choose strategy=ddp, "
            "fsdp or deepspeed_2"
        ]
    if ranks > 1 and "WORLD_SIZE" not in os.environ:
        return [f"Slurm started {ranks} processes; start one on each node, a torchrun (see slurm/README.md)"]
    if target.endswith(".DeepSpeed") and importlib.util.find_spec("deepspeed") is None:
        return ["strategy=deepspeed_* needs the package deepspeed: pip install 'scaledl[deepspeed]'"]
    together = config.strategy.get("tensor_parallel_size", 1)
    if together < 1 or ranks % together:
        return [
            f"strategy.tensor_parallel_size={together} does not divide the {ranks} rank{'s' * (ranks > 1)} that were "
            "started; start a multiple of it, or choose a divisor"
        ]
    return []


def _federation_fits(config: DictConfig) -> list[str]:
    if not config.get("federation"):
        return []
    name = config.strategy.get("_target_", "").rpartition(".")[2]
    problems = []
    if name not in ("Single", "DDP"):
        problems.append(
            f"strategy={name.lower()} cannot serve federated training, which needs the whole model on each rank: it "
            "divides one model over the ranks, but clients train apart; strategy=ddp can"
        )
    if config.precision == "bf16-true":
        problems.append("precision=bf16-true loses updates smaller than 1/256 of a weight; take 32-true or bf16-mixed")
    if config.trainer.max_epochs >= 0:
        problems.append("a federated run counts rounds: set trainer.max_steps, and federation.local_epochs within one")
    return problems
