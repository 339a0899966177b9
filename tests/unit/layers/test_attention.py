import math

import pytest
import torch
from torch import Tensor

from scaledl.layers.attention import Attention, LayerCache, causal_mask
from scaledl.layers.position import RotaryEmbedding

T = 9
POSITIONS = torch.arange(T)
LOWER = torch.ones(T, T, dtype=torch.bool).tril()
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [5] * T])


def by_formula(layer: Attention, x: Tensor, source: Tensor, allowed: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(head_dim)) v, head by head, with -inf where not allowed (B, T, S)."""
    d = layer.head_dim
    q, k, v = layer.q(x), layer.k(source), layer.v(source)
    num_heads, num_kv_heads = q.shape[-1] // d, k.shape[-1] // d
    outputs = []
    for head in range(num_heads):
        kv = head // (num_heads // num_kv_heads)
        q_h, k_h, v_h = q[..., head * d : (head + 1) * d], k[..., kv * d : (kv + 1) * d], v[..., kv * d : (kv + 1) * d]
        if layer.q_norm is not None:
            q_h, k_h = layer.q_norm(q_h), layer.k_norm(k_h)
        if layer.rope is not None:
            q_h, k_h = RotaryEmbedding(d, layer.rope.base)(q_h, k_h, POSITIONS)
        scores = (q_h @ k_h.transpose(-1, -2) / math.sqrt(d)).masked_fill(~allowed, -math.inf)
        outputs.append(scores.softmax(-1) @ v_h)
    return layer.out(torch.cat(outputs, -1))


def make(**arguments) -> Attention:
    torch.manual_seed(0)
    layer = Attention(24, 6, init_std=0.4, **arguments)
    if layer.q_norm is not None:
        torch.nn.init.uniform_(layer.q_norm.weight, 0.5, 2.0)
    return layer


@pytest.mark.parametrize("arguments", [{}, {"num_kv_heads": 2}, {"num_kv_heads": 1, "head_dim": 10, "bias": False}])
@pytest.mark.parametrize("extra", [{}, {"qk_norm": True, "rope_base": 100.0}])
@pytest.mark.parametrize("pattern", ["full", "causal", "window", "documents", "window+documents"])
def test_self_attention_equals_the_formula(arguments: dict, extra: dict, pattern: str) -> None:
    layer, x = make(**arguments, **extra), torch.randn(2, T, 24)
    window = 3 if "window" in pattern else None
    documents = DOCUMENTS if "documents" in pattern else None
    mask = (
        causal_mask(POSITIONS, POSITIONS, window=window, document_ids=documents) if window or "doc" in pattern else None
    )
    allowed = torch.ones(2, T, T, dtype=torch.bool)
    if pattern != "full":
        allowed = allowed & LOWER
    for i in range(T):
        for j in range(T):
            if window is not None and i - j >= 3:
                allowed[:, i, j] = False
            if documents is not None:
                allowed[:, i, j] &= DOCUMENTS[:, i] == DOCUMENTS[:, j]
    y = layer(x, mask=mask, is_causal=pattern == "causal", positions=POSITIONS)
    torch.testing.assert_close(y, by_formula(layer, x, x, allowed), atol=1e-5, rtol=1e-5)


def test_cross_attention_with_padding_equals_the_formula() -> None:
    layer, x, context = make(num_kv_heads=3), torch.randn(2, T, 24), torch.randn(2, 5, 24)
    real = torch.tensor([[True] * 5, [True, True, False, False, False]])
    y = layer(x, context=context, mask=real[:, None, None, :])
    torch.testing.assert_close(y, by_formula(layer, x, context, real[:, None, :]), atol=1e-5, rtol=1e-5)
    assert (layer(x, context=context) - y)[1].abs().max() > 1e-3


@pytest.mark.parametrize(
    "arguments", [{}, {"num_kv_heads": 2, "head_dim": 10}, {"qk_norm": True, "rope_base": 100.0, "num_kv_heads": 3}]
)
@pytest.mark.parametrize("rule", [{}, {"is_causal": True}, {"mask": DOCUMENTS[:, None, :, None] >= DOCUMENTS[0]}])
def test_the_attention_map_is_what_values_are_mixed_by(arguments: dict, rule: dict) -> None:
    layer, x = make(**arguments), torch.randn(2, T, 24)
    weights = layer.attention_map(x, positions=POSITIONS, **rule)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6, T))
    values = layer.v(x).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)  # (B, num_kv_heads, T, head_dim)
    mixed = weights @ values.repeat_interleave(6 // values.shape[1], dim=1)
    expected = layer(x, positions=POSITIONS, **rule)
    torch.testing.assert_close(layer.out(mixed.transpose(1, 2).flatten(2)), expected, atol=1e-5, rtol=1e-5)


def test_is_causal_hides_the_future() -> None:
    layer, x = make(), torch.randn(1, T, 24)
    changed = x.clone()
    changed[:, 5:] += 1
    difference = (layer(x, is_causal=True) - layer(changed, is_causal=True)).abs().amax(-1)[0]
    assert (difference[:5] == 0).all()
    assert (difference[5:] > 1e-4).all()


def test_dropout_acts_in_training_only() -> None:
    layer, x = make(dropout=0.5), torch.randn(1, T, 24)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), by_formula(layer, x, x, torch.ones(T, T, dtype=torch.bool)))


def test_qk_norm_makes_attention_blind_to_the_scale_of_queries() -> None:
    x = torch.randn(1, T, 24)
    for qk_norm, same in ((True, True), (False, False)):
        layer = make(qk_norm=qk_norm, bias=False)
        before = layer(x)
        with torch.no_grad():
            layer.q.weight *= 5
        assert torch.allclose(before, layer(x), atol=1e-3) is same


def test_init_fills_every_parameter() -> None:
    with torch.device("meta"):
        layer = Attention(256, 8, num_kv_heads=2, qk_norm=True, init_std=0.02, out_init_std=0.005)
    layer.to_empty(device="cpu")
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    for module in (layer.q, layer.k, layer.v, layer.out, layer.q_norm, layer.k_norm, layer):
        module.reset_parameters()
    for name, std in (("q", 0.02), ("k", 0.02), ("v", 0.02), ("out", 0.005)):
        assert getattr(layer, name).weight.std().item() == pytest.approx(std, rel=0.05)
        assert getattr(layer, name).bias.abs().max() == 0
    assert (layer.q_norm.weight == 1).all()


def test_cache_grows_and_refuses_what_does_not_fit() -> None:
    cache = LayerCache(1, 4)
    k, v = torch.randn(2, 1, 2, 3, 3).bfloat16().unbind(0)
    keys, values = cache.append(k, v)
    assert torch.equal(keys, k)
    assert torch.equal(values, v)
    assert keys.dtype == torch.bfloat16
    keys, _ = cache.append(k[:, :, :1], v[:, :, :1])
    assert keys.shape == (1, 2, 4, 3)
    with pytest.raises(ValueError, match=r"1 sequences of 5 tokens do not fit.*max_len=4.*size you need"):
        cache.append(k[:, :, :1], v[:, :, :1])
    with pytest.raises(ValueError, match="2 sequences of 1 tokens do not fit into a cache for 1"):
        LayerCache(1, 4).append(k[:, :, :1].expand(2, -1, -1, -1), v[:, :, :1].expand(2, -1, -1, -1))


def test_errors_name_value_and_way_out() -> None:
    with pytest.raises(ValueError, match=r"dim=10 is not divisible by num_heads=4.*head_dim"):
        Attention(10, 4)
    with pytest.raises(ValueError, match=r"num_heads=4 is not divisible by num_kv_heads=3.*divisor"):
        Attention(12, 4, num_kv_heads=3)
    with pytest.raises(AssertionError, match="mask is the whole rule"):
        make()(torch.randn(1, T, 24), mask=LOWER, is_causal=True)
