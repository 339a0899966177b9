from functools import partial

import pytest
import torch
from torch import Tensor

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.bag_of_words import BagOfWords

BOTH = [8, None]


def make(**changes: object) -> BagOfWords:
    return ModelBuilder(partial(BagOfWords, **{"vocab_size": 20, "out_dim": 3, **changes}), seed=0)()


def texts() -> Tensor:
    return torch.tensor([[4, 2, 2, 9], [7, 0, 0, 0], [3, 19, 4, 0]])


def perturbed(model: BagOfWords) -> BagOfWords:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model


def test_it_is_a_linear_map_of_the_mean_embedding() -> None:
    model = perturbed(make(dim=8))
    weight, out = model.embedding.weight, model.out[1]
    for row, logits, features in zip(texts(), model(texts()), model.forward_features(texts()), strict=True):
        mean = weight[row[row != 0]].mean(0)
        torch.testing.assert_close(features, mean)
        torch.testing.assert_close(logits, out.weight @ mean + out.bias)
    assert model.num_features == 8


def test_without_embeddings_it_is_linear_in_the_counts() -> None:
    model = perturbed(make(dim=None))
    counts = torch.stack([torch.bincount(row, minlength=20) for row in texts()]).float()  # (B, V)
    counts[:, 0] = 0
    torch.testing.assert_close(model(texts()), counts @ model.embedding.weight + model.bias)
    assert model.forward_features(texts()).shape == (3, model.num_features)


@pytest.mark.parametrize("dim", BOTH)
def test_neither_order_nor_padding_matters(dim: int | None) -> None:
    model = perturbed(make(dim=dim))
    longer = torch.cat([texts(), torch.zeros(3, 5, dtype=torch.int64)], 1)
    torch.testing.assert_close(model(longer.flip(1)), model(texts()))


def test_imdb_has_the_published_number_of_parameters() -> None:
    """bentrevett/pytorch-sentiment-analysis, neural bag of words: 21,635 words of 300 dimensions, 2 classes."""
    model = ModelBuilder(partial(BagOfWords, 21_635, 2, dim=300)).on_meta()
    assert sum(p.numel() for p in model.parameters()) == 6_491_102
    linear = ModelBuilder(partial(BagOfWords, 1000, 2, dim=None)).on_meta()
    assert sum(p.numel() for p in linear.parameters()) == 2 * 1000 + 2


@pytest.mark.parametrize("dim", BOTH)
def test_a_gradient_for_every_parameter_but_none_for_padding(dim: int | None) -> None:
    model = make(dim=dim)
    torch.nn.functional.cross_entropy(model(texts()), torch.tensor([0, 0, 2])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.is_sparse, name
        assert parameter.grad.abs().max() > 1e-6, name
    assert not model.embedding.weight.grad[0].any()
    assert not model.embedding.weight.grad[5].any()  # in no text


@pytest.mark.parametrize("dim", BOTH)
def test_state_dict_round_trip_and_bf16(dim: int | None) -> None:
    model, other = perturbed(make(dim=dim)), make(dim=dim)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(texts()), model(texts()), atol=0, rtol=0)
    torch.testing.assert_close(other.bfloat16()(texts()).float(), model(texts()), atol=0.15, rtol=0.05)


def test_dropout_without_embeddings_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dropout=0.5 is of embeddings, and dim=null has none"):
        BagOfWords(20, 3, dim=None, dropout=0.5)
