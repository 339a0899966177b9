"""`runs/<experiment>/<run_id>/`: all that evaluate, generate and resume need."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from scaledl import atomic

RESOLVED, LINKED, SUMMARY = "config.yaml", "composed.yaml", "summary.json"


def open_for(config: DictConfig, run_dir: Path) -> None:
    """Make the directory and write the config: with every value resolved, and with its links, for resume.

    Raises:
        ValueError: the directory holds a run of another model or task.
    """
    known = run_dir / RESOLVED
    if known.is_file():
        before, now = OmegaConf.load(known), OmegaConf.create(OmegaConf.to_container(config, resolve=True))
        for part in ("model", "task"):
            if before[part] != now[part]:
                changed = [key for key in {*before[part], *now[part]} if before[part].get(key) != now[part].get(key)]
                raise ValueError(
                    f"{run_dir} holds a run with another {part} ({part}.{sorted(changed)[0]} was"
                    f" {before[part].get(sorted(changed)[0])!r}); choose another run_id, or leave it out"
                )
    run_dir.mkdir(parents=True, exist_ok=True)
    atomic.write_text(run_dir / LINKED, OmegaConf.to_yaml(config))
    atomic.write_text(known, OmegaConf.to_yaml(config, resolve=True))


def load_config(run_dir: Path, name: str = RESOLVED) -> DictConfig:
    """The config of a run.

    Raises:
        FileNotFoundError: this is no run directory.
    """
    if not (run_dir / name).is_file():
        raise FileNotFoundError(
            f"{run_dir} is no run directory (it holds no {name}); runs lie in runs/<experiment>/<run_id>"
        )
    config = OmegaConf.load(run_dir / name)
    assert isinstance(config, DictConfig)
    return config


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    atomic.write_text(run_dir / SUMMARY, json.dumps(summary, indent=2) + "\n")
