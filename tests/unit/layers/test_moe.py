"""Mixture of experts against dense layers, a loop over tokens, and closed forms."""

import copy

import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from scaledl.layers.feedforward import FeedForward
from scaledl.layers.grouped import grouped_linear
from scaledl.layers.moe import MixtureOfExperts


def make(**changes) -> MixtureOfExperts:
    torch.manual_seed(0)
    arguments = {"dim": 16, "num_experts": 6, "experts_per_token": 2, "hidden_dim": 24, "init_std": 0.3}
    return MixtureOfExperts(**{**arguments, **changes})


def tokens(*shape: int) -> Tensor:
    return torch.randn(*(shape or (3, 7)), 16, generator=torch.Generator().manual_seed(1))


def by_hand(moe: MixtureOfExperts, x: Tensor) -> Tensor:
    """One token after the other."""
    out = []
    for token in x.flatten(0, -2):
        logits = moe.router.weight @ token
        scores = logits.softmax(0) if moe.router.score == "softmax" else logits.sigmoid()
        chosen = (scores if moe.router.bias is None else scores + moe.router.bias).argsort(descending=True)
        chosen = chosen[: moe.router.experts_per_token]
        weights = scores[chosen] / scores[chosen].sum() if moe.router.normalize else scores[chosen]
        y = torch.zeros_like(token)
        for weight, e in zip(weights, chosen, strict=True):
            hidden = moe.experts.up[e] @ token
            gate = moe.experts.gate
            hidden = F.gelu(hidden) if gate is None else F.silu(gate[e] @ token) * hidden
            y = y + weight * (moe.experts.down[e] @ hidden)
        if moe.shared is not None:
            y = y + moe.shared(token)
        out.append(y)
    return torch.stack(out).view_as(x)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "swiglu"},
        {"normalize": False},
        {"score": "sigmoid", "num_shared_experts": 2, "activation": "swiglu"},
        {"experts_per_token": 6},
        {"experts_per_token": 1, "balance": "none"},
    ],
)
def test_every_token_gets_the_weighted_sum_of_its_experts(changes: dict) -> None:
    moe, x = make(**changes), tokens().requires_grad_()
    if moe.router.bias is not None:
        moe.router.bias.copy_(torch.tensor([0.5, 0.0, -0.5, 0.1, 0.0, 0.2]))
    other, x_other = copy.deepcopy(moe), x.detach().clone().requires_grad_()
    y, expected = moe(x), by_hand(other, x_other)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, x_other.grad, atol=1e-4, rtol=1e-4)
    for (name, one), two in zip(moe.named_parameters(), other.parameters(), strict=True):
        assert one.grad is not None, name  # also of an expert that no token chose
        wanted = torch.zeros_like(two) if two.grad is None else two.grad
        torch.testing.assert_close(one.grad, wanted, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_equal_experts_are_one_dense_layer(activation: str) -> None:
    moe, dense = make(activation=activation), FeedForward(16, 24, activation=activation, bias=False, init_std=0.3)
    with torch.no_grad():
        for name in ("gate", "up", "down"):
            if getattr(dense, name) is not None:
                getattr(moe.experts, name).copy_(getattr(dense, name).weight.expand(6, -1, -1))
    x = tokens()
    torch.testing.assert_close(moe(x), dense(x), atol=1e-5, rtol=1e-5)
    moe.router.normalize = False
    assert (moe(x) - dense(x)).abs().max() > 1e-2


def test_a_bias_changes_the_choice_and_not_the_weight() -> None:
    moe, x = make(), tokens()
    weights, chosen = moe.router(x)
    moe.router.bias[4] = 10.0
    _, forced = moe.router(x)
    assert (forced == 4).any(-1).all()
    assert not (chosen == 4).any(-1).all()
    moe.router.bias.fill_(3.0)
    torch.testing.assert_close(moe.router(x), (weights, chosen))


def test_the_bias_moves_against_the_load_and_not_in_a_bad_step() -> None:
    router = make(balance_rate=0.25).router
    load = torch.tensor([9.0, 1.0, 4.0, 4.0, 2.0, 4.0])  # mean 4
    router.after_step(load, torch.tensor(False))
    assert not router.bias.any()
    router.after_step(load, torch.tensor(True))
    assert router.bias.tolist() == [-0.25, 0.25, 0, 0, 0.25, 0]


def test_the_bias_balances_a_router_that_does_not_learn() -> None:
    moe, x = make(balance_rate=0.02), tokens(16, 32) + 0.5
    loads = []
    for _ in range(120):
        moe.router(x)
        loads.append(moe.router.load)
        moe.router.after_step(loads[-1], torch.tensor(True))
    first, last = ((load.max() / load.mean()).item() for load in (loads[0], torch.stack(loads[-10:]).mean(0)))
    assert loads[0].sum() == 16 * 32 * 2
    assert first > 1.3
    assert last < 1.1


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_the_balance_loss_is_the_mean_over_sequences(score: str) -> None:
    router, x = make(balance="loss", balance_rate=0.5, score=score).router, tokens()
    router(x)
    losses = []
    for sequence in x:
        logits = sequence @ router.weight.T
        scores = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
        scores = scores / scores.sum(-1, keepdim=True)
        chosen = scores.topk(2).indices.flatten().bincount(minlength=6)
        losses.append(0.5 * 6 * (chosen / 14 * scores.mean(0)).sum())
    torch.testing.assert_close(router.losses["balance_loss"], torch.stack(losses).mean())
    halves = []
    for part in (x[:1], x[1:2], x[2:]):
        router(part)
        halves.append(router.losses["balance_loss"])
    torch.testing.assert_close(torch.stack(halves).mean(), torch.stack(losses).mean())
    nn.init.zeros_(router.weight)
    router(x)
    assert router.losses["balance_loss"].item() == pytest.approx(0.5)  # in balance


def test_the_z_loss() -> None:
    router, x = make(balance="none", z_loss=0.1).router, tokens()
    router(x)
    expected = 0.1 * (x @ router.weight.T).exp().sum(-1).log().square().mean()
    torch.testing.assert_close(router.losses, {"z_loss": expected})


def test_losses_reach_the_router_and_evaluation_notes_nothing() -> None:
    moe = make(balance="loss", balance_rate=1.0)
    moe(tokens())
    sum(moe.router.losses.values()).backward()
    assert moe.router.weight.grad.abs().max() > 0
    assert moe.experts.up.grad is None
    moe.eval().router.load = None
    moe(tokens())
    assert moe.router.load is None


def test_the_bias_stays_in_fp32_and_the_rest_computes_in_bf16() -> None:
    moe = make(activation="swiglu", num_shared_experts=1)
    moe.router.bias += 0.001
    expected = moe(tokens())
    low = copy.deepcopy(moe).bfloat16()
    assert low.router.bias.dtype == torch.float32
    torch.testing.assert_close(low.router.bias, moe.router.bias, rtol=0, atol=0)
    assert low.experts.up.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        mixed = moe(tokens())
    for y in (low(tokens().bfloat16()), mixed):
        assert y.dtype == torch.bfloat16
        assert (y - expected).abs().mean() < 0.03 * expected.abs().mean()


def test_the_bias_is_in_fp32_where_lightning_builds_a_model_in_bf16() -> None:
    with HalfPrecision("bf16-true").module_init_context():
        moe = make()
    assert moe.router.bias.dtype == torch.float32
    assert moe.experts.up.dtype == torch.bfloat16


def test_a_share_of_the_experts_gives_a_share_of_the_sum() -> None:
    """As of tensor-parallel ranks, whose outputs are then added up; undefined rows must reach nothing."""
    moe, x = make(activation="swiglu"), tokens().flatten(0, 1).requires_grad_()
    weights, chosen = (part.detach() for part in moe.router(x))
    whole = moe.experts(x, weights, chosen)
    whole.sum().backward()
    grad, x.grad = x.grad, None
    parts = []
    for first in (0, 2, 4):
        part = copy.deepcopy(moe.experts)
        part.first_expert = first
        for name in ("gate", "up", "down"):
            setattr(part, name, nn.Parameter(getattr(moe.experts, name)[first : first + 2].detach()))
        parts.append(part(x, weights, chosen))
        parts[-1].sum().backward()
        torch.testing.assert_close(part.up.grad, moe.experts.up.grad[first : first + 2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sum(parts), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad, grad, atol=1e-5, rtol=1e-5)


def test_grouped_products_and_their_gradients() -> None:
    x, weight = torch.randn(7, 3, dtype=torch.double), torch.randn(4, 5, 3, dtype=torch.double)
    ends = torch.tensor([2, 2, 6, 7], dtype=torch.int32)  # one group is empty
    expected = torch.cat([x[:2] @ weight[0].T, x[2:6] @ weight[2].T, x[6:] @ weight[3].T])
    torch.testing.assert_close(grouped_linear(x, weight, ends), expected)
    x.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(grouped_linear, (x, weight, ends))
    torch.library.opcheck(torch.ops.scaledl.grouped_linear, (x, weight, ends))


@pytest.mark.parametrize(("width", "kernel"), [(24, True), (20, False)])
def test_a_gpu_s_kernel_gets_rows_that_it_can_read(monkeypatch: pytest.MonkeyPatch, width: int, kernel: bool) -> None:
    """Whose strides it checks without a GPU too: a multiple of 16 bytes, here and in the gradients."""
    used, real = [], F.grouped_mm
    monkeypatch.setattr(F, "grouped_mm", lambda *given, **named: used.append(given) or real(*given, **named))
    with FakeTensorMode():
        x, up, down = (
            torch.empty(size, device="cuda", dtype=torch.bfloat16) for size in ((9, 16), (4, width, 16), (4, 16, width))
        )
        ends = torch.empty(4, device="cuda", dtype=torch.int32)
        hidden = grouped_linear(x, up, ends)
        assert hidden.shape == (9, width)
        assert grouped_linear(hidden, down, ends).shape == (9, 16)
    assert len(used) == 2 * kernel


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operations_are_counted_with_memory_and_without(device: str) -> None:
    moe, x = make(activation="swiglu").to(device), tokens().to(device).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        moe(x).sum().backward()
    experts = 3 * 2 * 21 * 2 * 16 * 24  # three matrices, for each token's two experts
    routers = 2 * 21 * 16 * 6
    assert counter.get_total_flops() == 3 * (experts + routers)  # forward, backward for inputs and for weights


@pytest.mark.parametrize("balance", ["bias", "loss"])
def test_it_traces_as_one_graph_and_notes_the_same(balance: str) -> None:
    moe, x = make(balance=balance, num_shared_experts=1), tokens()
    expected = moe(x)
    load, losses = moe.router.load, moe.router.losses
    moe.router.load, moe.router.losses = None, {}
    torch.testing.assert_close(torch.compile(moe, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(moe.router.load, load)
    torch.testing.assert_close(moe.router.losses, losses)


def test_errors_name_value_and_way_out() -> None:
    for k in (0, 7):
        with pytest.raises(ValueError, match=f"experts_per_token={k} must lie between 1 and num_experts=6"):
            make(experts_per_token=k)
    with pytest.raises(ValueError, match="balance_rate=-1 must be at least 0"):
        make(balance_rate=-1)
    with pytest.raises(ValueError, match="4 tensor-parallel ranks cannot share num_experts=6: choose a divisor"):
        make().tensor_parallel_plan(4)
