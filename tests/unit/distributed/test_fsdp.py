"""How ranks are laid out, and which blocks can be divided over them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from scaledl.distributed.expert_parallel import ExpertParallel
from scaledl.distributed.fsdp import FSDP, HSDP, axis_of, tensor_parallel_plan
from scaledl.distributed.pieces import Pieces
from scaledl.layers.attention import Attention
from scaledl.layers.feedforward import FeedForward
from scaledl.layers.moe import Experts
from scaledl.layers.transformer import TransformerBlock
from scaledl.models.gpt import GPT


def block(num_heads: int = 4, num_kv_heads: int | None = None, feedforward: nn.Module | None = None) -> nn.Module:
    attention = Attention(16, num_heads, num_kv_heads=num_kv_heads)
    return TransformerBlock(16, attention, feedforward or FeedForward(16, 24))


@pytest.mark.parametrize(
    ("divided", "size", "said"),
    [
        (lambda: nn.Linear(2, 2), 2, "strategy.tensor_parallel_size=2: Linear has no tensor-parallel plan"),
        (lambda: block(num_heads=2), 4, "4 tensor-parallel ranks cannot share num_heads=2"),
        (lambda: block(num_heads=4, num_kv_heads=2), 4, "4 tensor-parallel ranks cannot share num_kv_heads=2"),
        (lambda: block(feedforward=FeedForward(16, 6)), 4, "4 tensor-parallel ranks cannot share hidden_dim=6"),
        (lambda: block(feedforward=nn.Linear(16, 16)), 2, "Linear has no tensor-parallel plan"),
    ],
)
def test_a_block_that_cannot_be_divided_is_refused(divided: Callable, size: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tensor_parallel_plan(divided(), size)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_a_plan_names_every_matrix_of_a_block_and_nothing_that_is_not_there(activation: str, qk_norm: bool) -> None:
    model = GPT(11, 8, dim=16, depth=1, num_heads=4, activation=activation, qk_norm=qk_norm)
    (of,) = [module for module in model.modules() if isinstance(module, TransformerBlock)]
    plan = tensor_parallel_plan(of, 2)
    linears = {name for name, module in of.named_modules() if isinstance(module, nn.Linear)}
    assert {name for name, style in plan.items() if style in ("colwise", "rowwise")} == linears
    norms = {"attention.q_norm", "attention.k_norm"} if qk_norm else set()
    assert set(plan) - linears == norms
    assert {name for name, style in plan.items() if style == "rowwise"} == {"attention.out", "feedforward.down"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tensor_parallel_size": 3}, "strategy.tensor_parallel_size=3 does not divide the 8 ranks"),
        ({"tensor_parallel_size": 0}, "strategy.tensor_parallel_size=0 does not divide"),
        ({"shard_size": 3}, "strategy.shard_size=3 does not divide the 8 data-parallel ranks"),
        ({"shard_size": 0}, "strategy.shard_size=0 does not divide"),
        (
            {"shard_size": 8, "tensor_parallel_size": 2},
            "strategy.shard_size=8 does not divide the 4 data-parallel ranks",
        ),
    ],
)
def test_ranks_that_do_not_divide_are_refused(monkeypatch: pytest.MonkeyPatch, arguments: dict, said: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ValueError, match=said):
        FSDP(**arguments)


@pytest.mark.parametrize(
    ("strategy", "arguments", "layout", "name"),
    [
        (FSDP, {}, (1, 8, 1), "fsdp"),
        (FSDP, {"shard_size": 4}, (2, 4, 1), "hsdp"),
        (FSDP, {"shard_size": 1}, (8, 1, 1), "hsdp"),
        (FSDP, {"tensor_parallel_size": 2}, (1, 4, 2), "fsdp+tp"),
        (FSDP, {"tensor_parallel_size": 8}, (1, 1, 8), "tp"),
        (FSDP, {"tensor_parallel_size": 2, "shard_size": 2}, (2, 2, 2), "hsdp+tp"),
        (HSDP, {}, (2, 4, 1), "hsdp"),  # two nodes of four
        (HSDP, {"tensor_parallel_size": 2}, (2, 2, 2), "hsdp+tp"),
        (HSDP, {"shard_size": 2}, (4, 2, 1), "hsdp"),
    ],
)
def test_copies_shards_and_matrix_parts_make_up_the_ranks(
    monkeypatch: pytest.MonkeyPatch, strategy: type[FSDP], arguments: dict, layout: tuple, name: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    made = strategy(**arguments)
    assert (made.num_copies, made.shard_size, made.tensor_parallel_size) == layout
    assert made.strategy_name == name


@pytest.mark.parametrize(
    ("num_experts", "together", "placed", "share"),
    [
        (8, 1, (Shard(1),), (8, 1, 64)),
        (32, 1, (Shard(0),), (1, 32, 64)),
        (48, 1, (Shard(1),), (48, 1, 64)),
        (8, 4, (Shard(1), Shard(0)), (2, 4, 64)),  # 8 ranks share 2 of 8 experts
    ],
)
def test_experts_are_divided_evenly_over_more_ranks_than_there_are(
    monkeypatch: pytest.MonkeyPatch, num_experts: int, together: int, placed: tuple, share: tuple
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "32")
    monkeypatch.setattr(FSDP, "root_device", torch.device("cpu"))
    torch.distributed.init_process_group("fake", rank=31, world_size=32, store=FakeStore())
    try:
        strategy = FSDP(tensor_parallel_size=together)
        sizes = {"copy": 1, "shard": 32 // together, "tensor": together}
        strategy._mesh = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        experts = Experts(64, num_experts, 32)
        if together > 1:
            parallelize_module(experts, strategy._mesh["tensor"], ExpertParallel(), src_data_rank=None)
        strategy.shard(experts)
        assert experts.up.placements == placed
        assert experts.up.to_local().shape == share
        (part,) = Pieces.of(experts.up).parts
        assert [offset + size for offset, size in zip(part[0], share, strict=True)] == [num_experts, 32, 64]
    finally:
        torch.distributed.destroy_process_group()


def test_what_ranks_cannot_divide_evenly_is_padded_along_its_first_axis() -> None:
    experts = Experts(5, 3, 7)
    assert axis_of(experts.up, {experts.up}, 2) is None
    assert axis_of(experts.up, {experts.up}, 5) == Shard(2)
    assert axis_of(experts.up, set(), 5) is None
