"""Caches that beam search reorders, and that remember the context of cross attention."""

import torch

from scaledl.layers.attention import Attention, ContextCache, KVCache, LayerCache


def layer() -> Attention:
    torch.manual_seed(0)
    return Attention(16, 4, num_kv_heads=2, qk_norm=True, init_std=0.4).eval()


def test_the_context_is_projected_once_and_needed_once() -> None:
    attention, cache, calls = layer(), ContextCache(), []
    attention.k.register_forward_hook(lambda *_: calls.append(1))
    x, context = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[:, None, None, :]
    expected = attention(x, context=context, mask=real)
    first = attention(x[:, :1], context=context, mask=real, cache=cache)
    rest = attention(x[:, 1:], mask=real, cache=cache)
    torch.testing.assert_close(torch.cat((first, rest), 1), expected)
    assert len(calls) == 2


def test_selected_rows_are_copies_that_part_ways() -> None:
    attention, cache = layer(), LayerCache(2, 4)
    x = torch.randn(2, 2, 16)
    attention(x, is_causal=True, cache=cache)
    rows = torch.tensor([1, 1, 0])
    cache.select(rows)
    following = torch.randn(3, 1, 16)
    found = attention(following, cache=cache)
    expected = attention(torch.cat((x[rows], following), 1), is_causal=True)[:, -1:]
    torch.testing.assert_close(found, expected)
    assert (found[0] - found[1]).abs().max() > 1e-3
    attention(torch.randn(3, 1, 16), cache=cache)  # there is still room for max_len tokens
    assert cache.length == 4


def test_rows_are_selected_in_every_layer_and_before_the_first_token() -> None:
    cache = KVCache(depth=2, batch_size=1, max_len=3)
    cache.select(torch.tensor([0, 0]))
    for each in cache.layers:
        each.append(torch.randn(2, 1, 1, 4), torch.randn(2, 1, 1, 4))
    cache.select(torch.tensor([1]))
    assert [each.keys.shape[0] for each in cache.layers] == [1, 1]
    assert cache.length == 1
