"""What tests of models share: yaml files, and references with their weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

CONF = Path(__file__).parents[3] / "conf"


@pytest.fixture
def from_yaml() -> Callable[..., nn.Module]:
    """A model of conf/model/ with changed arguments."""

    def build(name: str, **changes: Any) -> nn.Module:
        with hydra.initialize_config_dir(str(CONF / "model"), version_base="1.3"):
            config = OmegaConf.merge(hydra.compose(name), changes)
        return hydra.utils.instantiate(config, _convert_="all")

    return build


@pytest.fixture
def count(from_yaml: Callable[..., nn.Module]) -> Callable[..., int]:
    """The parameters of such a model, built without memory."""

    def parameters(name: str, **changes: Any) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in from_yaml(name, **changes).parameters())

    return parameters


@pytest.fixture
def take_weights() -> Callable[[nn.Module, nn.Module], None]:
    """Give `ours` the weights and running statistics of `theirs`, in their order, after moving theirs off 0 and 1."""

    def of(model: nn.Module) -> list[torch.Tensor]:
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        return [*model.parameters(), *buffers]

    @torch.no_grad()
    def take(ours: nn.Module, theirs: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        for one, other in zip(of(ours), of(theirs), strict=True):
            assert one.shape == other.shape
            if other.ndim == 1:
                other.add_(0.3 * torch.rand(other.shape, generator=generator))
            one.copy_(other)

    return take


@pytest.fixture
def torchvision() -> Any:
    return pytest.importorskip("torchvision", reason="torchvision, an optional reference, is not installed")


@pytest.fixture
def timm() -> Any:
    return pytest.importorskip("timm", reason="timm, an optional reference, is not installed")
