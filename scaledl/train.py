"""One run: compose -> validate -> build -> fit -> evaluate."""

import hashlib
import importlib.metadata
import logging
import os
import platform
import resource
import secrets
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from scaledl import atomic, build, checkpoint, host_memory, run_directory
from scaledl.callbacks.init_from import InitFrom
from scaledl.callbacks.metrics import Metrics
from scaledl.callbacks.preemption import Preempted
from scaledl.callbacks.throughput import Throughput
from scaledl.config.compose import change, compose
from scaledl.config.resolvers import WANDB_ID
from scaledl.config.rules import broken_rules
from scaledl.config.schema import Root
from scaledl.config.validate import ALLOWED, ConfigError, validate
from scaledl.data.base import Data
from scaledl.distributed import group
from scaledl.distributed.state import RunState
from scaledl.federated.check import check_task
from scaledl.federated.runner import Runner
from scaledl.loggers import jsonl
from scaledl.loggers.base import RunLogger, told
from scaledl.model_text import describe
from scaledl.snapshot import commit_of_scaledl
from scaledl.tables import final_table, start_table
from scaledl.tasks.base import Task


def train(words: list[str], folders: list[Path], allowed: list[str], resume: Path | None = None) -> float | None:
    """Train what `words` describe, or go on with the run in `resume`; returns the monitored metric.

    Raises:
        ConfigError: the config is wrong; nothing was built or written.
        Preempted: a signal stopped the run, which has saved.
    """
    return run(composed(words, folders, allowed, resume))


def composed(words: list[str], folders: list[Path], allowed: list[str], resume: Path | None = None) -> DictConfig:
    """The valid config of `words`.

    Raises:
        ConfigError: every problem of it at once.
    """
    if resume is None:
        config, problems = compose(words, folders)
        if config.init_from:  # a run is resumed from anywhere
            config.init_from = os.path.abspath(os.path.expanduser(config.init_from))
    else:
        config = run_directory.load_config(resume, run_directory.LINKED)
        _check_not_lost(resume, config.checkpoint.every_n_steps)
        config.run_dir = str(resume)
        run_directory.own_tokenizer(config, resume)
        problems = change(config, words, folders)
    problems += [] if problems else broken_rules(config)
    if config.get("data"):
        problems += validate(config, Root, build.PROVIDED, (*ALLOWED, *allowed))
    if problems:
        raise ConfigError(problems)
    return config


def _check_not_lost(run_dir: Path, every_n_steps: int) -> None:
    """A run without a checkpoint begins anew, but not over the log of one whose checkpoints were taken away.

    Raises:
        FileNotFoundError: that is so.
    """
    logged = max((line["step"] for line in jsonl.read(run_dir / "metrics.jsonl")), default=0)
    if logged >= 2 * every_n_steps and checkpoint.latest(run_dir) is None:
        raise FileNotFoundError(
            f"{run_dir} has a log of {logged} steps and no whole checkpoint any more; bring its checkpoints/ back, or "
            "train a new run"
        )


def run(config: DictConfig) -> float | None:
    """Build, fit and evaluate a valid config."""
    quiet()
    if not torch.cuda.is_available():
        host_memory.keep_freed()
    started = time.time()
    console = Console()
    run_dir = Path(config.run_dir)
    linked = OmegaConf.to_yaml(config)
    data, task, strategy, num_parameters = checked(config)
    federation = build.federation(config)
    if group.world_size() > 1:
        group.join()

    def first_look() -> Path | None:
        run_directory.check_same_run(config, run_dir)
        return checkpoint.latest(run_dir)

    resumed_from = group.agreed(first_look)
    begin = InitFrom(config.init_from) if config.init_from and not resumed_from else None
    if resumed_from and (summary := _completed(config, run_dir, checkpoint.step_of(resumed_from))):
        if group.rank() == 0:
            console.print(final_table(summary, run_dir, title="completed before; trainer.max_steps=... trains on"))
        return summary["best"]["value"] if summary["best"] else None

    def open_run() -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        data.save_to(run_dir)
        run_directory.write_config(run_dir, linked, config)
        if not (run_dir / WANDB_ID).exists():
            atomic.write_text(run_dir / WANDB_ID, secrets.token_hex(8))
        step = checkpoint.step_of(resumed_from) if resumed_from else -1
        checkpoint.clear_after(run_dir, step)
        jsonl.rewind(run_dir / "metrics.jsonl", step)

    group.agreed(open_run)
    trainer = build.trainer(config, run_dir, data, strategy, begin)
    federated = Runner(trainer, task, data, federation, run_dir) if federation else None
    summary = _facts_before(config, trainer, num_parameters)
    loggers = [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]

    def begin_logs() -> None:
        atomic.write_text(run_dir / run_directory.MODEL, describe(task.model_builder.on_meta()))
        for logger in loggers:
            logger.begin(checkpoint.step_of(resumed_from) if resumed_from else 0, summary)

    group.agreed(begin_logs)
    for each in trainer.loggers:
        each.log_hyperparams(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    if trainer.is_global_zero:
        console.print(start_table(config, data, num_parameters, trainer, resumed_from))
    status = "failed"
    try:
        if federated:
            federated.fit(resumed_from)
        else:
            trainer.fit(task, datamodule=data, ckpt_path=str(resumed_from) if resumed_from else None, weights_only=True)
        status = next(filter(None, (getattr(c, "outcome", None) for c in trainer.callbacks)), "completed")  # type: ignore[attr-defined]
    except Preempted:
        status = "preempted"
        raise
    finally:
        if trainer.is_global_zero:
            summary |= {"status": status, **_facts_after(trainer, data, run_dir, time.time() - started)}
            summary |= federated.facts() if federated else {}
            run_directory.write_summary(run_dir, summary)
            for logger in loggers:
                with told(f"the log of {type(logger).__name__} was not ended"):
                    logger.end(summary)
    if trainer.is_global_zero:
        console.print(final_table(summary, run_dir, title=status))
    best = build.checkpoint_of(trainer).best
    return best["value"] if best else None


def checked(config: DictConfig) -> tuple[Data, Task, RunState, int]:
    """Data, task, strategy and the number of parameters: all that one process can find wrong before ranks meet.

    Raises:
        ValueError: model, task, data and strategy do not fit.
    """
    data = build.data(config)
    train_set = data.split("train")
    assert train_set is not None
    build.settle_steps(config, len(train_set))
    model = build.model(config)
    num_parameters = sum(parameter.numel() for parameter in model.on_meta().parameters())
    task = build.task(config, model)
    build.check_fit(config, task, train_set)
    strategy = build.strategy(config)
    build.check_served(task, strategy, data)
    federation = build.federation(config)
    if federation:
        check_task(task, train_set, federation)
    return data, task, strategy, num_parameters


def _completed(config: DictConfig, run_dir: Path, step: int) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to train."""
    summary = run_directory.read_summary(run_dir)
    done = summary is not None and summary["status"] == "completed" and step >= config.trainer.max_steps
    return summary if done else None


def _facts_before(config: DictConfig, trainer: pl.Trainer, num_parameters: int) -> dict[str, Any]:
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    for volatile in ("run_id", "run_dir", "runs_dir"):
        del resolved[volatile]
    return {
        "status": None,
        "experiment": config.experiment,
        "family": config.experiment.partition("/")[0],
        "strategy": trainer.strategy.strategy_name,  # type: ignore[attr-defined]
        "precision": config.precision,
        "num_nodes": trainer.num_nodes,
        "world_size": trainer.world_size,
        "num_parameters": num_parameters,
        "config_hash": hashlib.sha256(OmegaConf.to_yaml(OmegaConf.create(resolved)).encode()).hexdigest()[:16],
        "git_commit": commit_of_scaledl(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("scaledl", "torch", "lightning", "hydra-core")
        },
        "environment": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpu_cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _facts_after(trainer: pl.Trainer, data: Any, run_dir: Path, seconds: float) -> dict[str, Any]:
    throughput = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
    metrics = next((c for c in trainer.callbacks if isinstance(c, Metrics)), None)  # type: ignore[attr-defined]
    rates = throughput.rates if throughput else {}
    saved = checkpoint.all_of(run_dir)
    return {
        "steps": trainer.global_step,
        "samples_seen": data.samples_seen,
        "tokens_seen": data.samples_seen * data.tokens_per_sample or None,
        "train_seconds": throughput.train_seconds if throughput else None,
        "total_seconds": seconds,
        "throughput": {name: rates.get(name) for name in ("samples_per_second", "tokens_per_second")},
        "mfu": throughput.mfu if throughput else None,
        "flops_per_sample": throughput.flops_per_sample if throughput else None,
        "peak_memory_bytes": {
            "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            "device": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        },
        "metrics": metrics.last if metrics else {},
        "best": build.checkpoint_of(trainer).best,
        "checkpoint": str(saved[-1]) if saved else None,
    }


def quiet() -> None:
    """Lightning's start-up notes and its advice about what we do on purpose say nothing to a user of ours."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*no `val_dataloader`.*",
        ".*Total length of `list` across ranks is zero.*",
        ".*Checkpoint directory.*",
        ".*`IterableDataset` has `__len__`.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*It is recommended to use .self.log.*sync_dist.*",  # the evaluation's sums are reduced already
        ".*DeepSpeed handles gradient clipping internally.*",
        ".*is deprecated. Please use `torch.distributed.*",  # DeepSpeed's calls
        ".*`srun` command is available on your system but is not used.*",
    ):
        warnings.filterwarnings("ignore", message)
