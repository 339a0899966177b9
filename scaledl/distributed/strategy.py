"""How a run is spread over devices."""

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy


def single() -> Strategy:
    """One process on one device: the GPU if there is one."""
    return SingleDeviceStrategy(device="cuda:0" if torch.cuda.is_available() else "cpu")
