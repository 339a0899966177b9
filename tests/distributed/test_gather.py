"""Gradients through the gather: those of one process, from real ranks that each see a share of the batch."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from scaledl.distributed.gather import gather
from scaledl.tasks.contrastive import nt_xent, triplet_loss

pytestmark = pytest.mark.distributed
LOSSES = ["nt_xent", "hard", "semi_hard"]
SAMPLES = 8


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Weights, views (2, SAMPLES, 6) and labels."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((4, 6), (2, SAMPLES, 6)))
    return weight, x, torch.arange(SAMPLES) % 3


def loss_of(kind: str, z: Tensor, every: Tensor, first: int) -> Tensor:
    if kind == "nt_xent":
        return nt_xent(z, every, first, 0.3)[0]
    return triplet_loss(z, every, batch()[2], first, 0.5, kind)[0]  # type: ignore[arg-type]


def gradient(kind: str, ranks: int, rank: int, together: int, cut: bool = False) -> Tensor:
    """Of the weights, from this rank's share of the batch. cut: gradients stay inside the own part."""
    weight, x, _ = batch()
    weight.requires_grad_()
    share = SAMPLES // (ranks // together)
    first = rank // together * share
    z = F.normalize(x[:, first : first + share] @ weight.T, dim=2)
    if ranks == 1:
        every = z
    else:
        parts, place = gather(z.detach() if cut else z, together)
        if cut:
            parts[place] = z
        assert place * share == first
        every = parts.transpose(0, 1).flatten(1, 2)
    loss_of(kind, z, every, first).backward()
    assert weight.grad is not None
    return weight.grad


def work(rank: int, ranks: int, together: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), ranks), rank=rank, world_size=ranks)
    found = {}
    for kind in LOSSES:
        for cut in (False, True):
            found[kind, cut] = gradient(kind, ranks, rank, together, cut)
            dist.all_reduce(found[kind, cut])
            found[kind, cut] /= ranks  # as every strategy does
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("ranks", "together"), [(2, 1), (4, 2)])
def test_ranks_have_the_gradient_of_one_process(tmp_path: Path, ranks: int, together: int) -> None:
    """Also where two ranks that follow one another compute the same samples, as under tensor parallelism."""
    mp.spawn(work, (ranks, together, tmp_path), nprocs=ranks)
    for rank in range(ranks):
        found = torch.load(tmp_path / f"{rank}.pt")
        for kind in LOSSES:
            expected = gradient(kind, 1, 0, 1)
            torch.testing.assert_close(found[kind, False], expected)
            error = (found[kind, True] - expected).norm() / expected.norm()
            assert error > 0.05, f"{kind}: this test would not see a gather that cuts the graph ({error})"
