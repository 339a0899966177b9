"""How a run is spread over devices: not at all, or the whole model on each (fsdp.py and zero.py divide the model)."""

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from scaledl.distributed import group
from scaledl.distributed.state import RunState


class Single(RunState, SingleDeviceStrategy):
    """One process on one device: the GPU if there is one."""

    strategy_name = "single"

    def __init__(self) -> None:
        super().__init__(device="cuda:0" if torch.cuda.is_available() else "cpu")


class DDP(RunState, DDPStrategy):
    """The whole model on every rank; gradients are averaged while the backward pass runs (Li et al. 2020).

    Args:
        find_unused_parameters: allow parameters that a step does not use, at the price of a walk over the graph.
    """

    strategy_name = "ddp"

    def __init__(self, find_unused_parameters: bool = False) -> None:
        super().__init__(find_unused_parameters=find_unused_parameters, gradient_as_bucket_view=True)

    def setup_environment(self) -> None:
        group.join()
        super().setup_environment()
