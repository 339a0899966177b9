"""What unit tests share."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from scaledl.distributed import group


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group of this process alone, so that there are meshes and DTensors."""
    group.join()
    yield
    dist.destroy_process_group()
