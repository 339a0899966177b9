"""Values that a config takes from its surroundings: the run's name and whether Weights & Biases has an account."""

import contextlib
import netrc
import os
import secrets
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

WANDB_ID = "wandb_id"  # a file in the run directory


def run_id() -> str:
    """One name for a run, the same on every rank and after a requeue.

    The first of: SCALEDL_RUN_ID, Slurm's job id, a name that torchrun's ranks agree on through their launcher's store
    (or, where it gives them none, torchrun's --rdzv-id), the time with a random suffix. It is exported, so that
    processes started from here share it.
    """
    environment = os.environ
    if not environment.get("SCALEDL_RUN_ID"):
        name = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)
        if "SLURM_JOB_ID" in environment and "SLURM_PROCID" in environment:
            array = [environment.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK")]
            name = "slurm-" + ("_".join(array) if all(array) else environment["SLURM_JOB_ID"])  # type: ignore[arg-type]
        elif environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            from torch.distributed import TCPStore

            store = TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
            name = store.compare_set("scaledl/run_id", "", name).decode()
        elif "TORCHELASTIC_RUN_ID" in environment:
            name = environment["TORCHELASTIC_RUN_ID"]
        environment["SCALEDL_RUN_ID"] = name
    return environment["SCALEDL_RUN_ID"]


def wandb_offline() -> bool:
    """True without a Weights & Biases account: the run logs to its own folder, for a later `wandb sync`."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"] != "online"
    if os.environ.get("WANDB_API_KEY"):
        return False
    try:
        return netrc.netrc(str(Path.home() / ".netrc")).authenticators("api.wandb.ai") is None
    except (OSError, netrc.NetrcParseError):
        return True


def wandb_id(run_dir: str) -> str | None:
    """What the run's directory holds for all its attempts; None offline, where the client can resume nothing.

    An agent of a W&B sweep has named the run already.
    """
    if os.environ.get("WANDB_SWEEP_ID"):
        return os.environ.get("WANDB_RUN_ID")
    kept = Path(run_dir) / WANDB_ID
    return kept.read_text() if kept.is_file() and not wandb_offline() else None


def of_run(run_dir: str | None, node: str) -> Any:
    """A node of another run's config: `${of_run:${init_from},model}` is the model that is gone on with."""
    if run_dir is None:
        raise ValueError(f"the {node} is that of another run: give its directory, init_from=RUN")
    path = Path(run_dir).expanduser() / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run_dir} is no run directory (no config.yaml); runs lie in runs/<experiment>/<run_id>")
    return OmegaConf.select(OmegaConf.load(path), node)


def copy_from_runs(config: DictConfig) -> None:
    """Put the values that `of_run` finds in the place of the links, so that the config needs no other run.

    A link that leads nowhere stays, for validation to report.
    """
    for key in list(config):
        if OmegaConf.is_missing(config, key):
            continue
        if not OmegaConf.is_interpolation(config, key):
            if isinstance(config[key], DictConfig):
                copy_from_runs(config[key])
            continue
        link: Any = OmegaConf.to_container(config, resolve=False)
        if str(link[key]).startswith("${of_run:"):
            with contextlib.suppress(OmegaConfBaseException):
                config[key] = config[key]


def register() -> None:
    OmegaConf.register_new_resolver("of_run", of_run, replace=True)
    OmegaConf.register_new_resolver("run_id", run_id, replace=True)
    OmegaConf.register_new_resolver("wandb_offline", wandb_offline, replace=True)
    OmegaConf.register_new_resolver("wandb_id", wandb_id, replace=True)
