"""Values that a config takes from its surroundings: the run's name and whether Weights & Biases has an account."""

import netrc
import os
import secrets
import time
from pathlib import Path

from omegaconf import OmegaConf


def run_id() -> str:
    """One name for a run, the same on every rank and after a requeue.

    The first of: SCALEDL_RUN_ID, Slurm's job id, a name that torchrun's ranks agree on through their launcher's store,
    the time with a random suffix. It is exported, so that processes started from here share it.
    """
    environment = os.environ
    if not environment.get("SCALEDL_RUN_ID"):
        name = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)
        if "SLURM_JOB_ID" in environment and "SLURM_PROCID" in environment:
            name = "slurm-" + environment["SLURM_JOB_ID"]
        elif environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            from torch.distributed import TCPStore

            store = TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
            name = store.compare_set("scaledl/run_id", "", name).decode()
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


def register() -> None:
    OmegaConf.register_new_resolver("run_id", run_id, replace=True)
    OmegaConf.register_new_resolver("wandb_offline", wandb_offline, replace=True)
