"""The processes of a run: how many there are, which of them this one is, and the group in which they talk."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment

from scaledl.distributed.rendezvous import meet

T = TypeVar("T")


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def ranks_per_node() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def environment() -> ClusterEnvironment:
    """What tells Lightning its ranks: torchrun's variables; one process otherwise, whatever scheduler started it."""
    return TorchElasticEnvironment() if "LOCAL_RANK" in os.environ else LightningEnvironment()


def join(timeout: timedelta = timedelta(hours=2)) -> None:
    """Enter the run's process group, gloo for tensors of the host and NCCL for those of a GPU.

    The timeout is long because a collective that hangs is the watchdog's to report (distributed/watchdog.py).
    """
    if dist.is_initialized():
        return
    backend, here = "gloo", None
    if torch.cuda.is_available():
        here = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(here)
        backend = "cpu:gloo,cuda:nccl"
    through: dict[str, Any] = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = meet(dist.TCPStore(address, port, is_master=False, timeout=timeout), rank(), world_size(), timeout)
        through = {"store": store, "rank": rank(), "world_size": world_size()}
    dist.init_process_group(backend, timeout=timeout, device_id=here, **through)


def agreed(ask: Callable[[], T]) -> T:
    """What rank 0 finds, on every rank; an error that it meets is raised on all."""
    if world_size() == 1:
        return ask()
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = ask()
        except Exception as error:
            box[1] = error
    dist.broadcast_object_list(box, device=torch.device("cpu"))
    if box[1] is not None:
        raise box[1]
    return box[0]
