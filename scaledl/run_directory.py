"""`runs/<experiment>/<run_id>/`: all that evaluate, generate and resume need."""

import json
import math
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from scaledl import atomic

RESOLVED, LINKED, SUMMARY, MODEL = "config.yaml", "composed.yaml", "summary.json", "model.txt"
TOKENIZER = "tokenizer.json"  # saved there by the data

# What decides the numbers of a run; the rest (length, saving, logging, batches' split, ranks) may change on the way.
_FIXED = ("model", "task", "data", "optimizer", "scheduler", "seed", "federation", "lora")
_FREE = {
    "data": ("micro_batch_size", "num_workers", "cache_dir", "num_proc"),
    "scheduler": ("max_steps",),
}


def check_same_run(config: DictConfig, run_dir: Path) -> None:
    """A run keeps what decides its numbers.

    Raises:
        ValueError: the directory holds a run with another model, task, data, optimizer, schedule or seed.
    """
    if not (run_dir / RESOLVED).is_file():
        return
    before, now = _decisive(OmegaConf.load(run_dir / RESOLVED)), _decisive(config)
    changed = [f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in now if before.get(key) != now[key]]
    changed += [f"{key} was {before[key]!r}, now left out" for key in before if key not in now]
    if changed:
        raise ValueError(
            f"{run_dir} holds another run: {'; '.join(changed[:5])}. A run keeps what decides its numbers; "
            "choose another run_id, or leave it out"
        )


def write_config(run_dir: Path, linked: str, config: DictConfig) -> None:
    """The config with its links, for resume, and with every value resolved."""
    atomic.write_text(run_dir / LINKED, linked)
    atomic.write_text(run_dir / RESOLVED, OmegaConf.to_yaml(config, resolve=True))


def remove_config(run_dir: Path) -> None:
    for name in (LINKED, RESOLVED):
        (run_dir / name).unlink(missing_ok=True)


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


def own_tokenizer(config: DictConfig, run_dir: Path, later: Path | None = None) -> None:
    """Read a tokenizer that came from another run in this one, which keeps it too: the other may be gone.

    Args:
        later: what `run_dir` will be called.
    """
    if _has_saved_tokenizer(config) and (run_dir / TOKENIZER).is_file():
        config.data.tokenizer.path = str((later or run_dir).absolute())


def _has_saved_tokenizer(config: Any) -> bool:
    tokenizer = (config.get("data") or {}).get("tokenizer") or {}
    return tokenizer.get("_target_") == "scaledl.data.tokenizer.SavedTokenizer"


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    atomic.write_text(run_dir / SUMMARY, json.dumps(finite(summary), indent=2) + "\n")


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / SUMMARY
    return json.loads(path.read_text()) if path.is_file() else None


def status_of(summary: dict[str, Any] | None) -> str:
    return (summary or {}).get("status") or "running or killed"


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """The settings of a nested config by their dotted names."""
    if not isinstance(node, dict):
        return {path: node}
    return {
        name: value
        for key, each in node.items()
        for name, value in flat(each, f"{path}.{key}" if path else str(key)).items()
    }


def _decisive(config: Any) -> dict[str, Any]:
    """Flat `group.key` values that decide a run's numbers."""
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    if _has_saved_tokenizer(resolved):
        del resolved["data"]["tokenizer"]["path"]  # the data compare the tokenizer itself
    found: dict[str, Any] = {}
    for group in _FIXED:
        node = resolved.get(group)
        if isinstance(node, dict):
            found |= {f"{group}.{key}": v for key, v in node.items() if key not in _FREE.get(group, ())}
        else:
            found[group] = node
    return found


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
