"""Write a run's weights with its adapters merged into them, as a run that has none."""

import shutil
from pathlib import Path

from omegaconf import OmegaConf

from scaledl import atomic, build, checkpoint, run_directory
from scaledl.config.resolvers import WANDB_ID
from scaledl.distributed.pieces import Pieces
from scaledl.evaluate import load_run
from scaledl.layers.lora import is_adapted, merged

_CONFIGS = run_directory.RESOLVED, run_directory.LINKED
_OF_TRAINING = {*_CONFIGS, run_directory.SUMMARY, run_directory.MODEL, WANDB_ID}


def merge(run_dir: Path, which: str, to: Path, allowed: list[str]) -> Path:
    """Makes the run directory `to`, whose one checkpoint, of step 0, holds the weights and nothing else.

    Args:
        which: `best`, `last` or a step.

    Raises:
        ValueError: the run has no adapters, or `to` exists.
    """
    task, _, config, _ = load_run(run_dir, which, allowed, with_data=False)
    if not is_adapted(task.model):
        raise ValueError(f"{run_dir} was trained without lora; there is nothing to merge")
    if to.exists():
        raise ValueError(f"--to {to} exists; name a directory that does not")
    before = task.state_dict()
    weights = merged(before, config.lora.alpha / config.lora.rank)
    config.lora = None
    plain = build.task(config, build.model(config))
    plain.configure_model()
    for name in plain.state_dict().keys() - weights.keys():  # a reference, which was the model without its adapters
        weights[name] = before[name.replace("reference.", "model.", 1)]
    with atomic.new_folder(to) as beside:
        checkpoint.begin_with(beside, {f"weights/{name}": Pieces.of(tensor) for name, tensor in weights.items()})
        for file in run_dir.iterdir():  # what the data left there, such as a tokenizer
            if file.is_file() and file.name not in _OF_TRAINING and file.suffix not in (".jsonl", ".html"):
                shutil.copyfile(file, beside / file.name)
        for name in _CONFIGS:
            written = run_directory.load_config(run_dir, name)
            written.lora, written.run_dir = None, str(to)
            run_directory.own_tokenizer(written, beside, to)
            atomic.write_text(beside / name, OmegaConf.to_yaml(written))
    return to
