"""Batch norm over several ranks, on the host, against one process with the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.utils.checkpoint import checkpoint

from scaledl.layers.sync_batch_norm import BatchNorm, SyncBatchNorm

pytestmark = pytest.mark.distributed
SHARES = (slice(0, 3), slice(3, 8))  # ranks need not hold equally many samples


def network(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), kind(4), nn.ReLU(), nn.Conv2d(4, 3, 3), kind(3, affine=False), nn.Flatten()
    )


def batch() -> torch.Tensor:
    return torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(1)) * 3 + 1


def losses(y: torch.Tensor) -> torch.Tensor:
    """One for each sample."""
    return (y - y.detach().cos()).pow(4).sum(1)


def of_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = network(SyncBatchNorm)
    x = batch()[SHARES[rank]].requires_grad_()
    model(x)
    y = checkpoint(model, x, use_reentrant=False)  # whose second forward pass runs inside the backward pass
    losses(y).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    for gradient in gradients:
        dist.all_reduce(gradient)
    model.eval()
    evaluated = model(x[: 1 + rank])  # asks nothing of other ranks, though they hold other numbers
    low = SyncBatchNorm(2)(x.detach().bfloat16())
    found = {"y": y, "x": x.grad, "evaluated": evaluated, "gradients": gradients, "low": low}
    torch.save(found | {"buffers": list(model.buffers())}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_compute_what_one_process_computes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(of_a_rank, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    model, x = network(BatchNorm), batch().requires_grad_()
    for _ in range(2):
        y = model(x)
    losses(y).sum().backward()
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([found["y"] for found in ranks]), y, **close)
    torch.testing.assert_close(torch.cat([found["x"] for found in ranks]), x.grad, rtol=1e-4, atol=1e-4)
    for found in ranks:
        torch.testing.assert_close(found["gradients"], [p.grad for p in model.parameters()], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["buffers"], list(model.buffers()), **close)
    torch.testing.assert_close(ranks[1]["evaluated"], model.eval()(x[3:5]), **close)
    low = BatchNorm(2)(batch())
    torch.testing.assert_close(torch.cat([found["low"] for found in ranks]).float(), low, atol=0.05, rtol=0.02)
    alone = BatchNorm(2)(batch()[SHARES[0]])
    assert (alone - low[SHARES[0]]).abs().max() > 0.1
