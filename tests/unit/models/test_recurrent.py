from functools import partial

import pytest
import torch
from torch import Tensor, nn

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.recurrent import Recurrent, RecurrentLM

CELLS = ["rnn", "lstm", "gru"]
POOLINGS = ["last", "mean", "max", "attention"]


def language_model(cell: str, **changes: object) -> RecurrentLM:
    return ModelBuilder(partial(RecurrentLM, 11, cell=cell, **{"dim": 6, **changes}))()


def ids(batch: int = 3, length: int = 8) -> Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(0))


def step(cell: str, gates: tuple[Tensor, ...], x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of a cell by its equations: gates are W_ih, W_hh, b_ih, b_hh, rows by gate."""
    w_x, w_h, b_x, b_h = gates
    from_x, from_h = x @ w_x.T + b_x, h @ w_h.T + b_h
    if cell == "rnn":
        return (from_x + from_h).tanh(), c
    if cell == "lstm":
        i, f, g, o = (from_x + from_h).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    r_x, z_x, n_x = from_x.chunk(3, 1)
    r_h, z_h, n_h = from_h.chunk(3, 1)
    z = (z_x + z_h).sigmoid()
    return (1 - z) * (n_x + (r_x + r_h).sigmoid() * n_h).tanh() + z * h, c


@pytest.mark.parametrize("cell", CELLS)
def test_a_language_model_is_its_cells_equations(cell: str) -> None:
    model = language_model(cell)
    x = model.token_embedding(ids())
    gates = tuple(model.recurrent.parameters())
    h = c = torch.zeros(3, 6)
    for t in range(8):
        h, c = step(cell, gates, x[:, t], h, c)
        torch.testing.assert_close(model(ids())[:, t], model.head(h), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("depth", [1, 2])
def test_windows_with_a_carried_state_are_one_sequence_whose_gradient_is_cut(cell: str, depth: int) -> None:
    model = language_model(cell, depth=depth)
    cache = model.make_cache(3, 8)
    parts = [model(part, cache=cache) for part in ids().split(4, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids()))
    assert cache.length == 8
    assert not any(tensor.requires_grad for tensor in cache.tensors)
    second = model.make_cache(3, 8)
    model(ids()[:, :4], cache=second)
    gradients = []
    for logits in (model(ids()[:, 4:], cache=second), model(ids())[:, 4:]):
        model.zero_grad()
        logits.sum().backward()
        gradients.append(model.recurrent.weight_hh_l0.grad.clone())
    assert gradients[0].any()
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_of_a_language_model_has_a_gradient(tied: bool) -> None:
    model = language_model("lstm", depth=2, tie_embeddings=tied, dropout=0.1)
    model(ids()).logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    other = language_model("lstm", depth=2, tie_embeddings=tied)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.eval()(ids()), model.eval()(ids()))


def reader(pooling: str, bidirectional: bool, **changes: object) -> Recurrent:
    settings = {"cell": "gru", "dim": 6, "vocab_size": 11, "pooling": pooling, "bidirectional": bidirectional}
    return ModelBuilder(partial(Recurrent, 4, **{**settings, **changes}))()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_does_not_change_the_answer(pooling: str, bidirectional: bool) -> None:
    model = reader(pooling, bidirectional)
    text = ids(1, 5).clamp(min=1)
    padded = torch.cat((text, torch.zeros(1, 3, dtype=torch.int64)), 1)
    torch.testing.assert_close(model(padded), model(text), atol=1e-6, rtol=1e-5)
    together = model(torch.cat((padded, ids(2, 8).clamp(min=1))))
    torch.testing.assert_close(together[:1], model(text), atol=1e-6, rtol=1e-5)
    assert model(torch.zeros(1, 4, dtype=torch.int64)).isfinite().all()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("of", ["ids", "values"])
def test_every_parameter_of_a_reader_has_a_gradient(pooling: str, bidirectional: bool, of: str) -> None:
    model = reader(pooling, bidirectional, **({} if of == "ids" else {"vocab_size": None, "in_dim": 2}), depth=2)
    x = ids(3, 6).clamp(min=1) if of == "ids" else torch.randn(3, 6, 2)
    out = model(x)
    assert out.shape == (3, 4)
    assert model.forward_features(x).shape == (3, model.num_features)
    out.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_pooling_takes_what_it_says() -> None:
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    features = {}
    for pooling in POOLINGS:
        model = reader(pooling, True, vocab_size=None, in_dim=3)
        features[pooling] = model.forward_features(x)
        h = model.recurrent(x)[0]  # (2, 5, 12), alike in all: weights hang on names
    half = 6
    last = torch.cat((h[:, -1, :half], h[:, 0, half:]), 1)
    torch.testing.assert_close(features["last"], last)
    torch.testing.assert_close(features["mean"], h.mean(1))
    torch.testing.assert_close(features["max"], h.amax(1))
    weights = model.pooling.weights(h)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    torch.testing.assert_close(features["attention"], (weights[..., None] * h).sum(1))


@pytest.mark.parametrize("model", [language_model("gru"), reader("attention", False)])
def test_bf16(model: nn.Module) -> None:
    out = model.bfloat16()(ids().clamp(min=1))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


@pytest.mark.parametrize(("vocab_size", "in_dim"), [(None, None), (11, 2)])
def test_a_reader_reads_one_kind_of_thing(vocab_size: int | None, in_dim: int | None) -> None:
    with pytest.raises(ValueError, match="give the one that the data has"):
        Recurrent(4, vocab_size=vocab_size, in_dim=in_dim)
